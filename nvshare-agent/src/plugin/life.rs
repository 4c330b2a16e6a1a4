//! The plugin's life: waits for a kubelet and a GPU, listens, registers, and begins again whenever the kubelet restarts,
//! because a kubelet that starts forgets all plugins and removes their sockets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvshare_agent_core::snapshot::State;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{debug, info};

use super::allocate::Hand;
use super::api::KUBELET_SOCKET;
use super::api::device_plugin_server::DevicePluginServer;
use super::devices::Roster;
use super::options::{Options, Preload, When};
use super::prefer::loads;
use super::problems::{Matter, Problems};
use super::registration::register;
use super::service::{Knowledge, Service, Watchers};
use super::socket::{Identity, Socket, SocketError};
use super::watch::Watch;
use super::{OWN_SOCKET, RESOURCE, cdi, library};
use crate::health::Health;

/// Time between two looks at everything while nothing happens.
const CALM: Duration = Duration::from_secs(10);
/// The same while something is wrong.
const UNEASY: Duration = Duration::from_secs(2);
/// How long a node may take to show its first GPU before that is reported.
const FIRST_GPU: Duration = Duration::from_secs(10);
/// How often the age of readings is looked at while nothing is published.
const TICK: Duration = Duration::from_secs(1);
/// How often the library is looked for.
const LIBRARY: Duration = Duration::from_secs(5);

/// A task that ends with this value.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the plugin until dropped; its standing goes to `health`. `socket` is the clients' socket.
pub async fn run(options: Options, socket: PathBuf, mut state: watch::Receiver<Arc<State>>, health: Health) {
    let problems = Problems::new(health);
    if !wait_for_kubelet(&options, &problems).await {
        return;
    }
    let hand = Hand { socket, library: options.library_dir.clone(), preload: options.preload };
    let (list, devices) = watch::channel(Vec::new());
    let (load, loads) = watch::channel(BTreeMap::new());
    let roster = Arc::new(Mutex::new(Roster::new(options.shares)));
    let knowledge = Knowledge {
        roster: Arc::clone(&roster),
        devices: devices.clone(),
        loads,
        hand,
        cdi: (options.preload == Preload::Cdi).then(|| options.cdi_dir.clone()),
    };
    wait_for_gpu(&mut state, &problems).await;
    let keeper = Keeper { knowledge: knowledge.clone(), list, load, problems: problems.clone() };
    let _keeper = Task(tokio::spawn(keeper.keep(state)));
    loop {
        match one_life(&options, &knowledge, &problems).await {
            Ok(()) => debug!("the plugin's socket is gone: listening again"),
            Err(error) => {
                problems.set(Matter::Socket, Err(error));
                tokio::time::sleep(UNEASY).await;
            }
        }
    }
}

/// Waits until there is a kubelet, if the plugin waits for that; false where it is switched off.
async fn wait_for_kubelet(options: &Options, problems: &Problems) -> bool {
    match options.device_plugin {
        When::On => return true,
        When::Off => {
            problems.off();
            return false;
        }
        When::Auto => {}
    }
    while !options.kubelet_dir.is_dir() {
        problems.off();
        tokio::time::sleep(CALM).await;
    }
    true
}

/// A node without a GPU offers nothing, and its kubelet need not know.
async fn wait_for_gpu(state: &mut watch::Receiver<Arc<State>>, problems: &Problems) {
    let first = |limit| {
        let mut state = state.clone();
        tokio::time::timeout(limit, async move {
            if state.wait_for(|state| !state.devices.is_empty()).await.is_err() {
                // The agent stops.
                std::future::pending::<()>().await;
            }
        })
    };
    if first(FIRST_GPU).await.is_err() {
        problems.set(
            Matter::Devices,
            Err("no GPU was seen yet, so that there is nothing to offer to pods: see `devices`"),
        );
        let _ = first(Duration::MAX).await;
        problems.set(Matter::Devices, Ok::<(), String>(()));
    }
}

/// Keeps what the service knows up to date.
struct Keeper {
    knowledge: Knowledge,
    list: watch::Sender<Vec<super::api::Device>>,
    load: watch::Sender<BTreeMap<String, super::prefer::Load>>,
    problems: Problems,
}

impl Keeper {
    async fn keep(self, mut state: watch::Receiver<Arc<State>>) {
        let (mut published, mut looked) = (Instant::now(), None::<Instant>);
        loop {
            if looked.is_none_or(|looked| looked.elapsed() >= LIBRARY) {
                self.look_at_node();
                looked = Some(Instant::now());
            }
            let current = Arc::clone(&state.borrow_and_update());
            let usable = self.problems.is_clear(Matter::Library);
            let devices = {
                let mut roster = self.knowledge.roster.lock().unwrap_or_else(PoisonError::into_inner);
                roster.list(&current, published.elapsed(), usable)
            };
            let new = |old: &mut Vec<_>| {
                let changed = *old != devices;
                *old = devices;
                changed
            };
            if self.list.send_if_modified(new) {
                debug!("the list of devices changed");
            }
            self.load.send_replace(loads(&current));
            match tokio::time::timeout(TICK, state.changed()).await {
                Ok(Ok(())) => published = Instant::now(),
                // Nothing new: what there is gets older.
                Err(_) => {}
                Ok(Err(_)) => return,
            }
        }
    }

    /// Whether pods would find what they are given.
    fn look_at_node(&self) {
        let hand = &self.knowledge.hand;
        let found = library::check(hand).map_err(|error| error.to_string());
        let found = found.and_then(|()| match &self.knowledge.cdi {
            Some(directory) => cdi::write(directory, hand).map_err(|error| error.to_string()),
            None => Ok(()),
        });
        self.problems.set(Matter::Library, found);
    }
}

/// From listening on a new socket until that socket is gone.
async fn one_life(options: &Options, knowledge: &Knowledge, problems: &Problems) -> Result<(), SocketError> {
    let directory = &options.kubelet_dir;
    let watch = Watch::begin(directory);
    problems.set(
        Matter::Watch,
        watch.as_ref().map(|_| ()).map_err(|error| {
            format!(
                "cannot watch {} for restarts of the kubelet ({error}), which are now seen some seconds later; check \
                 that it is there and raise fs.inotify.max_user_instances",
                directory.display()
            )
        }),
    );
    let (socket, listener) = Socket::bind(&directory.join(OWN_SOCKET))?;
    problems.set(Matter::Socket, Ok::<(), String>(()));
    let watchers = Watchers::default();
    let service = DevicePluginServer::new(Service::new(knowledge.clone(), watchers.clone()));
    let server =
        Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
    let server = Task(tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "the device plugin's server ended; it starts again");
        }
    }));

    let kubelet_path = directory.join(KUBELET_SOCKET);
    loop {
        let kubelet = Identity::of(&kubelet_path);
        let registered = register(directory).await;
        let pause = if registered.is_ok() && watch.is_ok() { CALM } else { UNEASY };
        let known = registered.is_ok();
        if known {
            info!(resource = RESOURCE, "registered with the kubelet");
        }
        problems.set(Matter::Kubelet, registered);
        loop {
            let timer = tokio::time::sleep(pause);
            let timed_out = tokio::select! {
                () = timer => true,
                () = changed(watch.as_ref().ok()) => false,
            };
            if !socket.is_there() || server.0.is_finished() {
                return Ok(());
            }
            // A kubelet that came, or one that lost sight of us: the stream of devices broke, and it never asks again.
            let another = Identity::of(&kubelet_path) != kubelet;
            if another || (timed_out && (!known || watchers.count() == 0)) {
                break;
            }
        }
    }
}

async fn changed(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Cli;
    use crate::health::Part;

    /// What health says of the plugin after a moment: nothing yet, works or is off, or is missing.
    async fn standing(flags: &[&str]) -> Option<Option<String>> {
        let line = ["nvshare-agent", "--kubelet-dir=/nowhere"].iter().chain(flags);
        let options = Cli::try_parse_from(line).unwrap().config.plugin;
        let health = Health::new();
        let (_publish, state) = watch::channel(Arc::default());
        let run = run(options, "/run/nvshare/agent.sock".into(), state, health.clone());
        let _ = tokio::time::timeout(Duration::from_millis(20), run).await;
        let missing = health.readiness().missing.into_iter().find(|missing| missing.part == Part::Plugin);
        match missing {
            None => Some(None),
            Some(missing) if missing.needed => None,
            Some(missing) => Some(Some(missing.why)),
        }
    }

    #[tokio::test]
    async fn without_a_kubelet_the_plugin_is_off_and_nobody_waits_for_it() {
        assert_eq!(standing(&["--device-plugin=off"]).await, Some(None));
        assert_eq!(standing(&[]).await, Some(None));
        assert_eq!(standing(&["--device-plugin=on"]).await, None, "it waits for a GPU first");
    }
}
