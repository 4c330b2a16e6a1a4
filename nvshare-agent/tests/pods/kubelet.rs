//! A stand-in for the kubelet's pod-resources socket: answers List with what a test says, as one gRPC message over
//! HTTP/2.

use std::path::Path;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use axum::routing::post;
use http_body_util::{BodyExt, Full};
use nvshare_agent::pods::kubelet::{ContainerDevices, ContainerResources, LIST, ListResponse, PodResources};
use prost::Message;
use tokio::net::UnixListener;

/// How it went comes behind the message: 0 is well.
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Serves on `socket` that the container `server` of pod `ml/infer` has the device `id`.
pub(crate) fn serve(socket: &Path, id: &str) {
    let devices = ContainerDevices { resource: "nvshare.com/gpu".to_owned(), ids: vec![id.to_owned()] };
    let container = ContainerResources { name: "server".to_owned(), devices: vec![devices] };
    let pod =
        PodResources { name: "infer".to_owned(), namespace: "ml".to_owned(), containers: vec![container] };
    let message = ListResponse { pods: vec![pod] }.encode_to_vec();
    // Not compressed, and so long.
    let mut packet = vec![0];
    packet.extend((message.len() as u32).to_be_bytes());
    packet.extend(message);
    let answer = async move || {
        let done = async { Some(Ok(HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))]))) };
        let body = Full::new(Bytes::from(packet.clone())).with_trailers(done);
        ([(CONTENT_TYPE, "application/grpc")], Body::new(body))
    };
    let routes = Router::new().route(LIST, post(answer));
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
}
