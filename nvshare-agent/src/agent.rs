//! All parts of a running agent: built in order, stopped in order. A part that cannot be had is reported to [`Health`]
//! with the remedy, and the rest runs without it; the clients' socket and the pages are needed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nvshare_agent_core::change::Change;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::Seen;
use nvshare_agent_core::order::Order;
use nvshare_agent_core::reading::Report;
use nvshare_agent_core::snapshot::State;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::admin::server::Server;
use crate::admin::{Request, Response};
use crate::clock;
use crate::conductor::{self, Conductor, Input};
use crate::config::Config;
use crate::control::{BindError, Listener};
use crate::device::{self, Poll};
use crate::health::{Health, Part};
use crate::http;
use crate::log;
use crate::lost_cards::LostCards;
use crate::observer::{self, Observer};
use crate::plugin;
use crate::pods::{self, directory::Directory};
use crate::tasks::Tasks;

/// NVML takes a second at most; one that takes longer hangs.
const SILENCE: Duration = Duration::from_secs(10);

/// A device that answered within this time is there, though a round of questions ended without its answer.
const LATE: Duration = Duration::from_secs(2);

/// Why an agent cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody could see it.
    #[error(transparent)]
    Http(#[from] http::ListenError),
    /// No client could come.
    #[error(transparent)]
    Clients(#[from] BindError),
    /// The system is out of threads or files.
    #[error("cannot start a part of the agent: {0}")]
    System(#[from] io::Error),
}

pub use crate::tasks::Failed;

/// A running agent.
pub struct Agent {
    address: SocketAddr,
    observer: Option<Observer>,
    /// In the order in which they are stopped.
    tasks: Tasks,
    /// Keeps the devices' thread alive.
    poll: Poll,
    /// Asks the conductor to end.
    stopping: oneshot::Sender<()>,
}

impl Agent {
    /// Builds and starts all parts.
    pub async fn start(config: &Config) -> Result<Agent, StartError> {
        let health = Health::new();
        let clients = Listener::bind(&config.control.socket)?;
        health.works(Part::Clients);
        let pages = http::listen(config.http.listen, "--listen").await?;
        let probes = match config.http.probes {
            Some(address) => Some(http::listen(address, "--probes").await?),
            None => None,
        };
        let address = pages.local_addr()?;

        let (inputs, heard) = conductor::inputs();
        let read = Arc::new(AtomicU64::new(clock::now().0));
        let readings = readings(inputs.clone(), health.clone(), Arc::clone(&read));
        let ended = health.clone();
        let poll =
            device::start(config.device.nvml.clone(), readings, move |why| ended.ended(Part::Devices, &why))?;
        let (conductor, state) = Conductor::new(
            config.conductor.settings(),
            poll.clone(),
            &inputs,
            Some(config.control.socket.clone()),
        )?;
        let conductor = conductor.keeping(config.admin.admin_socket.parent().map(Path::to_owned));
        let (observations, seen) = conductor::observations();

        let observer = config.observer.options().map(|options| observe(options, observations)).transpose()?;

        let (directory, keeper) = pods::start(config.pods.options(), health.clone());
        let plugin =
            plugin::run(config.plugin.clone(), config.control.socket.clone(), state.clone(), health.clone());
        let pages = http::serve(pages, state.clone(), health.clone());
        let probes = probes.map(|probes| http::probes(probes, state.clone(), health.clone()));
        let report = report(state.clone(), health.clone(), read, config.observer.no_uprobes);

        // What could change clients is stopped first, what people look at last.
        let mut tasks = Tasks::new(health.clone());
        for part in [Part::Conductor, Part::Report, Part::Attribution, Part::Pages] {
            health.works(part);
        }
        let (stopping, stop) = oneshot::channel();
        let stop = async move { drop(stop.await) };
        tasks.spawn(Part::Conductor, conductor.run(heard, seen, stop));
        tasks.spawn(Part::Plugin, plugin);
        tasks.spawn_saying(Part::Clients, sessions(clients, inputs.clone()));
        tasks.spawn(Part::Report, report);
        tasks.spawn(Part::Attribution, attribute(directory, inputs.clone()));
        tasks.spawn(Part::Pods, keeper);
        match Server::bind(&config.admin.admin_socket) {
            Ok(server) => {
                health.works(Part::Admin);
                let answer = administrator(inputs, state, health);
                tasks.spawn(Part::Admin, server.serve(answer));
            }
            Err(error) => health.missing(Part::Admin, &error),
        }
        if let Some(probes) = probes {
            tasks.spawn_saying(Part::Pages, probes);
        }
        tasks.spawn_saying(Part::Pages, pages);
        Ok(Agent { address, observer, tasks, poll, stopping })
    }

    /// Where the pages are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end that should not come. Parts that end meanwhile, and that it can do without, are missed.
    pub async fn failed(&mut self) -> Failed {
        self.tasks.failed().await
    }

    /// Stops everything: what could change clients first, what people look at last.
    pub async fn stop(mut self) {
        if let Some(observer) = self.observer {
            // Its last counts go to the conductor. It takes a moment, on a thread of its own.
            let _ = tokio::task::spawn_blocking(|| observer.stop()).await;
        }
        drop(self.poll);
        // It has something left to do, so that it is asked. Where it has ended already nobody hears.
        let _ = self.stopping.send(());
        self.tasks.ended(Part::Conductor).await;
        self.tasks.stop().await;
    }
}

/// Carries the clients' sessions; what happens on them goes to the conductor, as long as there is one.
async fn sessions(clients: Listener, inputs: mpsc::Sender<Input>) -> Option<String> {
    let told = inputs.clone();
    let tell = move |session, event| {
        let inputs = told.clone();
        async move { inputs.send(Input::Session(session, event)).await.is_ok() }
    };
    match clients.serve(tell, inputs.closed()).await {
        // The conductor ended: that is what is to be told.
        None => std::future::pending().await,
        why => why,
    }
}

/// Starts the observer; what it sees goes to the conductor.
fn observe(options: observer::Options, observations: mpsc::Sender<Vec<Seen>>) -> io::Result<Observer> {
    Observer::start(options, move |seen| observations.blocking_send(seen).is_ok())
}

/// What the devices' thread does with its readings.
fn readings(
    inputs: mpsc::Sender<Input>,
    health: Health,
    read: Arc<AtomicU64>,
) -> impl FnMut(Report) + Send + 'static {
    let mut lost = LostCards::default();
    let mut answered = Moment::NEVER;
    move |report| {
        let now = clock::now();
        read.store(now.0, Ordering::Relaxed);
        lost.call(&report);
        // One device of several that does not answer keeps nobody from sharing the others, which may be late this time.
        match &report.problem {
            _ if !report.devices.is_empty() => {
                answered = now;
                health.works(Part::Devices);
            }
            Some(why) if report.complete || now.since(answered) >= LATE => {
                health.missing(Part::Devices, why);
            }
            _ => {}
        }
        // Fails only when the conductor is gone, and the agent about to end.
        let _ = inputs.blocking_send(Input::Devices(report));
    }
}

/// Reports what only the published state shows, until the conductor is gone.
async fn report(
    mut state: watch::Receiver<Arc<State>>,
    health: Health,
    read: Arc<AtomicU64>,
    no_uprobes: bool,
) {
    if no_uprobes {
        health.off(Part::Uprobes);
    }
    while state.changed().await.is_ok() {
        let state = Arc::clone(&state.borrow_and_update());
        if let Some(why) = silence(Moment(read.load(Ordering::Relaxed)), clock::now()) {
            health.missing(Part::Devices, &why);
        }
        match &state.host.problem {
            Some(why) => health.missing(Part::HostMemory, why),
            None => health.works(Part::HostMemory),
        }
        if no_uprobes {
            continue;
        }
        let observer = &state.observer;
        let failed = observer
            .attachments
            .iter()
            .filter_map(|file| file.problem.as_ref().map(|problem| format!("{}: {problem}", file.path)));
        let problems: Vec<String> = observer.problems.iter().cloned().chain(failed).collect();
        match (observer.loaded, problems.is_empty()) {
            // Still loading: nothing was reported yet.
            (false, true) => {}
            (true, true) => health.works(Part::Uprobes),
            (_, false) => health.missing(Part::Uprobes, &problems.join("; ")),
        }
    }
}

/// Tells the conductor of each new directory of pods. One that comes while the last is on its way replaces it.
async fn attribute(mut directory: watch::Receiver<Arc<Directory>>, inputs: mpsc::Sender<Input>) {
    while directory.changed().await.is_ok() {
        let latest = Arc::clone(&directory.borrow_and_update());
        if inputs.send(Input::Pods(latest)).await.is_err() {
            return;
        }
    }
}

/// Whether NVML, which was read last at `read`, answers no more.
fn silence(read: Moment, now: Moment) -> Option<String> {
    // No longer by the second: each reason is logged once.
    (now.since(read) > SILENCE).then(|| {
        format!("NVML has not answered for {SILENCE:?}; check that `nvidia-smi` answers, and the kernel log for Xid lines")
    })
}

/// What the administrator's socket answers.
fn administrator(
    inputs: mpsc::Sender<Input>,
    state: watch::Receiver<Arc<State>>,
    health: Health,
) -> impl Fn(Request) -> std::pin::Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync + 'static {
    move |request| {
        let (inputs, state, health) = (inputs.clone(), state.clone(), health.clone());
        Box::pin(async move {
            let failed = |why: String| Response::Error { why };
            match request {
                Request::Status => match serde_json::to_value(&**state.borrow()) {
                    Ok(state) => Response::State { state, readiness: health.readiness() },
                    Err(error) => failed(format!("cannot write the state: {error}")),
                },
                Request::Set { changes } => {
                    let (answer, answered) = oneshot::channel();
                    let texts: Vec<String> = changes.iter().map(ToString::to_string).collect();
                    let filters: Vec<String> = changes.iter().filter_map(Change::log_filter).collect();
                    if inputs.send(Input::Set { changes, answer }).await.is_err() {
                        return failed("the agent is stopping".to_owned());
                    }
                    match answered.await {
                        Ok(Ok(settings)) => {
                            for filter in &filters {
                                log::follow(filter);
                            }
                            info!(changes = texts.join(" "), "an administrator changed settings");
                            Response::Settings { settings: serde_json::json!(settings) }
                        }
                        Ok(Err(error)) => failed(error.to_string()),
                        Err(_) => failed("the agent is stopping".to_owned()),
                    }
                }
                Request::Order { client, order } => {
                    let (answer, answered) = oneshot::channel();
                    let order = Order { client, what: order };
                    if inputs.send(Input::Order(order, answer)).await.is_err() {
                        return failed("the agent is stopping".to_owned());
                    }
                    match answered.await {
                        Ok(Ok(())) => Response::Ordered,
                        Ok(Err(why)) => failed(why),
                        Err(_) => failed("the agent is stopping".to_owned()),
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
