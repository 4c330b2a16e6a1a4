//! A stand-in for the kubelet's pod-resources socket: answers List with what a test says, as one gRPC message over
//! HTTP/2.

use std::path::Path;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use nvshare_agent::pods::kubelet::{ContainerDevices, ContainerResources, LIST, ListResponse, PodResources};
use prost::Message;
use tokio::net::UnixListener;

/// Serves on `socket` that the container `server` of pod `ml/infer` has the device `id`.
pub fn serve(socket: &Path, id: &str) {
    let devices = ContainerDevices { resource: "nvshare.com/gpu".to_owned(), ids: vec![id.to_owned()] };
    let container = ContainerResources { name: "server".to_owned(), devices: vec![devices] };
    let pod =
        PodResources { name: "infer".to_owned(), namespace: "ml".to_owned(), containers: vec![container] };
    let message = ListResponse { pods: vec![pod] }.encode_to_vec();
    // Not compressed, and so long.
    let mut packet = vec![0];
    packet.extend((message.len() as u32).to_be_bytes());
    packet.extend(message);
    let answer = async move || ([(CONTENT_TYPE, "application/grpc")], packet.clone());
    let routes = Router::new().route(LIST, post(answer));
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
}
