//! The kubelet's device plugin API, v1beta1: its messages, by hand, and its two services (written by `build.rs`). The
//! halves that the agent does not speak are there for the stand-in kubelet of the tests.
//!
//! Names and numbers of fields: <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>
//! and `api.proto` of `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1`.

use std::collections::BTreeMap;

/// The version a plugin registers with.
pub const VERSION: &str = "v1beta1";
/// The kubelet's socket, in the directory of all plugins' sockets.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// [`Device::health`] of a device that may be given to pods.
pub const HEALTHY: &str = "Healthy";
/// [`Device::health`] of one that may not.
pub const UNHEALTHY: &str = "Unhealthy";

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// What a plugin can do beyond the least.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct DevicePluginOptions {
    /// It wants to hear of each start of a container.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// It has an opinion on which devices go together.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// A plugin introduces itself.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegisterRequest {
    /// [`VERSION`].
    #[prost(string, tag = "1")]
    pub version: String,
    /// The name of its socket, in the same directory as the kubelet's.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// The resource that pods ask for.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// See there.
    #[prost(message, optional, tag = "4")]
    pub options: Option<DevicePluginOptions>,
}

/// All devices of the plugin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListAndWatchResponse {
    /// Those that are not listed are gone.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// One device: here a share of a GPU.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Device {
    /// Unique for the resource.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`HEALTHY`] or [`UNHEALTHY`].
    #[prost(string, tag = "2")]
    pub health: String,
    /// Where it is, if that matters.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<TopologyInfo>,
}

/// The NUMA nodes near a device.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TopologyInfo {
    /// See there.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

/// A NUMA node.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct NumaNode {
    /// The kernel's number for it.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// Which devices would be best for some containers?
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PreferredAllocationRequest {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerPreferredAllocationRequest>,
}

/// Which devices would be best for a container?
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerPreferredAllocationRequest {
    /// To choose from.
    #[prost(string, repeated, tag = "1")]
    pub available_device_ids: Vec<String>,
    /// Must be among them.
    #[prost(string, repeated, tag = "2")]
    pub must_include_device_ids: Vec<String>,
    /// How many.
    #[prost(int32, tag = "3")]
    pub allocation_size: i32,
}

/// The best devices for some containers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PreferredAllocationResponse {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerPreferredAllocationResponse>,
}

/// The best devices for a container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerPreferredAllocationResponse {
    /// Which.
    #[prost(string, repeated, tag = "1")]
    pub device_ids: Vec<String>,
}

/// The kubelet gives devices to containers of a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AllocateRequest {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerAllocateRequest>,
}

/// The kubelet gives devices to a container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerAllocateRequest {
    /// Which.
    #[prost(string, repeated, tag = "1")]
    pub device_ids: Vec<String>,
}

/// What containers need in order to use their devices.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AllocateResponse {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerAllocateResponse>,
}

/// What a container needs in order to use its devices.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerAllocateResponse {
    /// Its environment.
    #[prost(btree_map = "string, string", tag = "1")]
    pub envs: BTreeMap<String, String>,
    /// Files and directories of the node.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// Device files of the node.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceSpec>,
    /// For the container's runtime.
    #[prost(btree_map = "string, string", tag = "4")]
    pub annotations: BTreeMap<String, String>,
    /// By name in a CDI specification.
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// A file or directory of the node in a container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mount {
    /// Where the container sees it.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Where it is on the node.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// The container cannot change it.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// A device file of the node in a container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeviceSpec {
    /// Where the container sees it.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Where it is on the node.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Of `rwm`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// A device by its CDI name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CdiDevice {
    /// `vendor/class=name`.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// A container is about to start. Never asked of this plugin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PreStartContainerRequest {
    /// Its devices.
    #[prost(string, repeated, tag = "1")]
    pub device_ids: Vec<String>,
}

/// It may.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PreStartContainerResponse {}

mod services {
    #![allow(missing_docs, clippy::all, clippy::pedantic, reason = "written by tonic")]
    include!(concat!(env!("OUT_DIR"), "/v1beta1.Registration.rs"));
    include!(concat!(env!("OUT_DIR"), "/v1beta1.DevicePlugin.rs"));
}

pub use services::{device_plugin_client, device_plugin_server, registration_client, registration_server};

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// A field of text, as protobuf encodes it.
    fn text(number: u8, value: &str) -> Vec<u8> {
        field(number, value.as_bytes())
    }

    fn field(number: u8, value: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, value.len() as u8], value].concat()
    }

    #[test]
    fn a_registration_has_the_numbers_of_the_protocol() {
        let request = RegisterRequest {
            version: VERSION.into(),
            endpoint: "a.sock".into(),
            resource_name: "x/y".into(),
            options: Some(DevicePluginOptions {
                pre_start_required: true,
                get_preferred_allocation_available: true,
            }),
        };
        let options = field(4, &[0x08, 1, 0x10, 1]);
        let expected = [text(1, "v1beta1"), text(2, "a.sock"), text(3, "x/y"), options].concat();
        assert_eq!(request.encode_to_vec(), expected);
    }

    #[test]
    fn devices_have_the_numbers_of_the_protocol() {
        let topology = Some(TopologyInfo { nodes: vec![NumaNode { id: 1 }] });
        let device = Device { id: "a".into(), health: HEALTHY.into(), topology };
        let inner = [text(1, "a"), text(2, "Healthy"), field(3, &field(1, &[0x08, 1]))].concat();
        assert_eq!(ListAndWatchResponse { devices: vec![device] }.encode_to_vec(), field(1, &inner));
    }

    #[test]
    fn a_preference_has_the_numbers_of_the_protocol() {
        let asked = [text(1, "a"), text(1, "b"), text(2, "b"), vec![0x18, 2]].concat();
        let request = PreferredAllocationRequest::decode(&*field(1, &asked)).unwrap();
        let request = &request.container_requests[0];
        assert_eq!((request.available_device_ids.join(","), request.allocation_size), ("a,b".into(), 2));
        assert_eq!(request.must_include_device_ids, ["b"]);
        let answer = ContainerPreferredAllocationResponse { device_ids: vec!["b".into()] };
        let answer = PreferredAllocationResponse { container_responses: vec![answer] };
        assert_eq!(answer.encode_to_vec(), field(1, &text(1, "b")));
    }

    #[test]
    fn an_allocation_has_the_numbers_of_the_protocol() {
        let request = AllocateRequest::decode(&*field(1, &text(1, "a"))).unwrap();
        assert_eq!(request.container_requests[0].device_ids, ["a"]);
        let response = ContainerAllocateResponse {
            envs: [("E".to_owned(), "1".to_owned())].into(),
            mounts: vec![Mount { container_path: "/c".into(), host_path: "/h".into(), read_only: true }],
            devices: vec![DeviceSpec {
                container_path: "/c".into(),
                host_path: "/h".into(),
                permissions: "r".into(),
            }],
            annotations: [("A".to_owned(), "2".to_owned())].into(),
            cdi_devices: vec![CdiDevice { name: "v/c=n".into() }],
        };
        let expected = [
            field(1, &[text(1, "E"), text(2, "1")].concat()),
            field(2, &[text(1, "/c"), text(2, "/h"), vec![0x18, 1]].concat()),
            field(3, &[text(1, "/c"), text(2, "/h"), text(3, "r")].concat()),
            field(4, &[text(1, "A"), text(2, "2")].concat()),
            field(5, &text(1, "v/c=n")),
        ]
        .concat();
        let all = AllocateResponse { container_responses: vec![response] };
        assert_eq!(all.encode_to_vec(), field(1, &expected));
    }
}
