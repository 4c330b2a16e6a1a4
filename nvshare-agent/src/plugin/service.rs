//! What the plugin answers the kubelet.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tracing::{debug, info};

use super::allocate::{AllocateError, Hand};
use super::api::device_plugin_server::DevicePlugin;
use super::api::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, Device, DevicePluginOptions,
    Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse,
};
use super::devices::Roster;
use super::prefer::{Load, prefer};
use super::{cdi, library};

/// What the plugin can do.
pub const OPTIONS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };

/// What the answers are made of; shared with the task that keeps it up to date.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// The GPUs.
    pub roster: Arc<Mutex<Roster>>,
    /// All shares and their health.
    pub devices: watch::Receiver<Vec<Device>>,
    /// How much each GPU is used.
    pub loads: watch::Receiver<BTreeMap<String, Load>>,
    /// What containers get.
    pub hand: Hand,
    /// Where a CDI specification goes, if there is to be one.
    pub cdi: Option<std::path::PathBuf>,
}

/// The service, for one life of the socket.
#[derive(Debug)]
pub struct Service {
    knowledge: Knowledge,
    watchers: Watchers,
}

/// How many kubelets watch the list of devices: one, when all is well.
#[derive(Clone, Debug, Default)]
pub struct Watchers(Arc<AtomicUsize>);

/// One of them, until dropped.
struct Watcher(Watchers);

impl Watchers {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn one_more(&self) -> Watcher {
        self.0.fetch_add(1, Ordering::Relaxed);
        Watcher(self.clone())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// Answers by this knowledge, and counts who watches in `watchers`.
    pub fn new(knowledge: Knowledge, watchers: Watchers) -> Service {
        Service { knowledge, watchers }
    }

    fn roster(&self) -> std::sync::MutexGuard<'_, Roster> {
        self.knowledge.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        debug!("the kubelet watches the devices");
        let watcher = self.watchers.one_more();
        let lists = WatchStream::new(self.knowledge.devices.clone()).map(move |devices| {
            let _counted = &watcher;
            Ok(ListAndWatchResponse { devices })
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let loads = self.knowledge.loads.borrow().clone();
        let shares = self.roster().shares();
        let container_responses = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|one| {
                let (free, included) = (&one.available_device_ids, &one.must_include_device_ids);
                let device_ids = prefer(free, included, one.allocation_size, shares, &loads)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                Ok(ContainerPreferredAllocationResponse { device_ids })
            })
            .collect::<Result<_, Status>>()?;
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let hand = &self.knowledge.hand;
        // The kubelet shows these texts in the pod's events.
        library::check(hand).map_err(|error| Status::failed_precondition(error.to_string()))?;
        if let Some(directory) = &self.knowledge.cdi {
            cdi::write(directory, hand).map_err(|error| Status::failed_precondition(error.to_string()))?;
        }
        let requests = request.into_inner().container_requests;
        let container_responses = requests
            .iter()
            .map(|one| hand.give(&one.device_ids, &self.roster()))
            .collect::<Result<_, AllocateError>>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        for one in &requests {
            info!(devices = one.device_ids.join(","), "shares given to a container");
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
