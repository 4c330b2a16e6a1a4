//! A stand-in for the kubelet, as far as device plugins see it: removes their sockets when it starts, hears them
//! register, follows their devices, asks for preferences and allocates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nvshare_agent::plugin::api::device_plugin_client::DevicePluginClient;
use nvshare_agent::plugin::api::registration_server::{Registration, RegistrationServer};
use nvshare_agent::plugin::api::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Device, DevicePluginOptions, Empty, KUBELET_SOCKET,
    PreferredAllocationRequest, RegisterRequest, VERSION,
};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::wait_for;

const LIMIT: Duration = Duration::from_mins(1);

/// A kubelet. Dropping it is a crash: its socket stays behind.
pub struct Kubelet {
    runtime: Runtime,
    directory: PathBuf,
    heard: Arc<Heard>,
}

/// What plugins told it.
struct Heard {
    directory: PathBuf,
    registrations: watch::Sender<Vec<RegisterRequest>>,
    /// The last list of the plugin that registered last; none once its stream has broken.
    devices: watch::Sender<Option<Vec<Device>>>,
    /// Those who follow them.
    followers: Mutex<Vec<JoinHandle<()>>>,
}

impl Kubelet {
    /// Starts with this directory of plugins.
    pub fn start(directory: &Path) -> Kubelet {
        fs::create_dir_all(directory).unwrap();
        for entry in fs::read_dir(directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let heard = Arc::new(Heard {
            directory: directory.into(),
            registrations: watch::Sender::default(),
            devices: watch::Sender::default(),
            followers: Mutex::default(),
        });
        let service = RegistrationServer::from_arc(Arc::new(Ear(Arc::clone(&heard))));
        let listener =
            runtime.block_on(async { UnixListener::bind(directory.join(KUBELET_SOCKET)) }).unwrap();
        let server =
            Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(server);
        Kubelet { runtime, directory: directory.into(), heard }
    }

    /// Waits for the `number`th registration since this kubelet started, from 1.
    pub fn registration(&self, number: usize) -> RegisterRequest {
        wait_for("the plugin registers", LIMIT, || self.heard.registrations.borrow().get(number - 1).cloned())
    }

    /// How often plugins registered.
    pub fn registrations(&self) -> usize {
        self.heard.registrations.borrow().len()
    }

    /// Waits until the plugin's devices are so many, with so many of them healthy.
    pub fn devices(&self, all: usize, healthy: usize) -> Vec<Device> {
        let what = format!("the plugin lists {all} devices, {healthy} of them healthy");
        wait_for(&what, LIMIT, || {
            let devices = self.heard.devices.borrow().clone().unwrap_or_default();
            let fit = devices.iter().filter(|device| device.health == "Healthy").count();
            ((devices.len(), fit) == (all, healthy)).then_some(devices)
        })
    }

    /// Breaks off every conversation, as when a connection breaks; the kubelet does not begin another.
    pub fn lose_sight(&self) {
        self.heard.followers.lock().unwrap().drain(..).for_each(|follower| follower.abort());
    }

    /// What the plugin says it can do.
    pub fn options(&self) -> DevicePluginOptions {
        self.ask(async |mut plugin| plugin.get_device_plugin_options(Empty {}).await).unwrap()
    }

    /// The plugin's choice.
    pub fn prefer(&self, free: &[String], included: &[String], size: i32) -> Result<Vec<String>, Status> {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: free.to_vec(),
                must_include_device_ids: included.to_vec(),
                allocation_size: size,
            }],
        };
        let mut answer = self.ask(async |mut plugin| plugin.get_preferred_allocation(request).await)?;
        assert_eq!(answer.container_responses.len(), 1);
        Ok(answer.container_responses.remove(0).device_ids)
    }

    /// What a container gets with these devices.
    pub fn allocate(&self, devices: &[String]) -> Result<ContainerAllocateResponse, Status> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest { device_ids: devices.to_vec() }],
        };
        let mut answer = self.ask(async |mut plugin| plugin.allocate(request).await)?;
        assert_eq!(answer.container_responses.len(), 1);
        Ok(answer.container_responses.remove(0))
    }

    fn ask<T>(
        &self,
        question: impl AsyncFnOnce(DevicePluginClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let socket = self.directory.join(self.registration(self.registrations().max(1)).endpoint);
        self.runtime.block_on(async { question(connect(&socket).await).await.map(Response::into_inner) })
    }
}

/// What plugins talk to.
struct Ear(Arc<Heard>);

#[tonic::async_trait]
impl Registration for Ear {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            return Err(Status::invalid_argument(format!("version {} is not supported", request.version)));
        }
        let socket = self.0.directory.join(&request.endpoint);
        self.0.devices.send_replace(None);
        self.0.registrations.send_modify(|all| all.push(request));
        let heard = Arc::clone(&self.0);
        let follower = tokio::spawn(async move {
            let mut lists = connect(&socket).await.list_and_watch(Empty {}).await.unwrap().into_inner();
            while let Ok(Some(list)) = lists.message().await {
                heard.devices.send_replace(Some(list.devices));
            }
            heard.devices.send_replace(None);
        });
        self.0.followers.lock().unwrap().push(follower);
        Ok(Response::new(Empty {}))
    }
}

async fn connect(socket: &Path) -> DevicePluginClient<Channel> {
    // The kubelet names itself so to a plugin.
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let endpoint = endpoint.origin("http://localhost".parse().unwrap());
    DevicePluginClient::new(endpoint.connect().await.expect("the plugin listens when it registers"))
}
