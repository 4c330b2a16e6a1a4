//! Writes the gRPC services of the kubelet's device plugin API; their messages are written by hand in `plugin/api.rs`,
//! so that no protobuf compiler is needed.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let registration = Service::builder()
        .name("Registration")
        .package("v1beta1")
        .method(method("register", "Register", "RegisterRequest", "Empty"))
        .build();
    let device_plugin = Service::builder()
        .name("DevicePlugin")
        .package("v1beta1")
        .method(method("get_device_plugin_options", "GetDevicePluginOptions", "Empty", "DevicePluginOptions"))
        .method(
            start("list_and_watch", "ListAndWatch", "Empty", "ListAndWatchResponse")
                .server_streaming()
                .build(),
        )
        .method(method(
            "get_preferred_allocation",
            "GetPreferredAllocation",
            "PreferredAllocationRequest",
            "PreferredAllocationResponse",
        ))
        .method(method("allocate", "Allocate", "AllocateRequest", "AllocateResponse"))
        .method(method(
            "pre_start_container",
            "PreStartContainer",
            "PreStartContainerRequest",
            "PreStartContainerResponse",
        ))
        .build();
    Builder::new().build_transport(false).compile(&[registration, device_plugin]);
}

fn method(name: &str, route: &str, input: &str, output: &str) -> Method {
    start(name, route, input, output).build()
}

fn start(name: &str, route: &str, input: &str, output: &str) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::plugin::api::{input}"))
        .output_type(format!("crate::plugin::api::{output}"))
        .codec_path("tonic_prost::ProstCodec")
}
