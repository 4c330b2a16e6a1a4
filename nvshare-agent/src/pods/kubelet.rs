//! Asks the kubelet which container got which of our devices: its pod-resources API, v1, over a Unix socket. The few
//! messages are written down here by hand, with the numbers of
//! <https://github.com/kubernetes/kubelet/blob/master/pkg/apis/podresources/v1/api.proto>; fields that we do not read are
//! left out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::uri::PathAndQuery;
use tokio::sync::mpsc;

use nvshare_agent_core::snapshot::Owner;
use tonic::transport::{Channel, Endpoint};

use super::News;
use super::directory::Allocated;
use super::trouble::Trouble;

/// The resource of our device plugin.
const RESOURCE: &str = "nvshare.com/gpu";
/// The method that lists what was given to whom.
pub const LIST: &str = "/v1.PodResourcesLister/List";
/// How often the kubelet is asked: it tells nobody about changes.
const EVERY: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest answer: a node full of pods with many CPUs listed one by one.
const MOST: usize = 16 << 20;

/// `ListPodResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRequest {}

/// `ListPodResourcesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResponse {
    /// Every pod.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodResources>,
}

/// `PodResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodResources {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its containers.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

/// `ContainerResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerResources {
    /// The container's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What device plugins gave it.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
}

/// `ContainerDevices`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerDevices {
    /// Such as `nvshare.com/gpu`.
    #[prost(string, tag = "1")]
    pub resource: String,
    /// The plugin's ids.
    #[prost(string, repeated, tag = "2")]
    pub ids: Vec<String>,
}

/// Asks again and again, until nobody wants to know.
pub(super) async fn follow(socket: PathBuf, tell: mpsc::Sender<News>) {
    loop {
        let news = match list(&socket).await {
            Ok(allocated) => News::Allocated(allocated),
            Err(trouble) => News::KubeletTrouble(trouble),
        };
        if tell.send(news).await.is_err() {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What the kubelet gave to whom.
async fn list(socket: &Path) -> Result<Allocated, Trouble> {
    if !socket.exists() {
        return Err(Trouble::no_socket(socket));
    }
    let failed = |error: &dyn std::error::Error| Trouble::of_kubelet(socket, &error);
    let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(|error| failed(&error))?
        .connect_timeout(LIMIT)
        .timeout(LIMIT)
        .connect()
        .await
        .map_err(|error| failed(&error))?;
    let response = ask(channel).await.map_err(|status| Trouble::of_kubelet(socket, &status.message()))?;
    Ok(allocated(response))
}

async fn ask(channel: Channel) -> Result<ListResponse, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MOST);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<ListRequest, ListResponse>::default();
    let request = tonic::Request::new(ListRequest {});
    Ok(client.unary(request, PathAndQuery::from_static(LIST), codec).await?.into_inner())
}

pub(super) fn allocated(response: ListResponse) -> Allocated {
    let mut allocated = Allocated::new();
    for pod in response.pods {
        for container in pod.containers {
            let owner =
                Owner { namespace: pod.namespace.clone(), pod: pod.name.clone(), container: container.name };
            let ours = container.devices.into_iter().filter(|devices| devices.resource == RESOURCE);
            allocated.extend(ours.flat_map(|devices| devices.ids).map(|id| (id, owner.clone())));
        }
    }
    allocated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_ours_are_kept() {
        let devices = |resource: &str, id: &str| ContainerDevices {
            resource: resource.to_owned(),
            ids: vec![id.to_owned()],
        };
        let container = ContainerResources {
            name: "server".to_owned(),
            devices: vec![devices(RESOURCE, "GPU-1::0"), devices("nvidia.com/gpu", "GPU-1")],
        };
        let pod = PodResources {
            name: "infer".to_owned(),
            namespace: "ml".to_owned(),
            containers: vec![container],
        };
        let allocated = allocated(ListResponse { pods: vec![pod] });
        let owner =
            Owner { namespace: "ml".to_owned(), pod: "infer".to_owned(), container: "server".to_owned() };
        assert_eq!(allocated, Allocated::from([("GPU-1::0".to_owned(), owner)]));
    }

    #[test]
    fn messages_are_what_the_kubelet_writes() {
        use prost::Message;
        // name "p", namespace "n", a container "c" with ids "x", "y" of resource "r" and an unknown field 3 (cpu ids).
        let bytes = b"\x0a\x18\x0a\x01p\x12\x01n\x1a\x10\x0a\x01c\x12\x09\x0a\x01r\x12\x01x\x12\x01y\x18\x05";
        let response = ListResponse::decode(bytes.as_slice()).unwrap();
        let pod = &response.pods[0];
        let devices = &pod.containers[0].devices[0];
        assert_eq!(
            (pod.name.as_str(), pod.namespace.as_str(), pod.containers[0].name.as_str()),
            ("p", "n", "c")
        );
        assert_eq!(
            (devices.resource.as_str(), devices.ids.as_slice()),
            ("r", &["x".to_owned(), "y".to_owned()][..])
        );
    }
}
