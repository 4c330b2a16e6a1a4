//! The one task that owns ledger and policy: it takes observations, requests and readings, and sends commands. What it
//! does with them is in the core; here are its inputs and its rhythm.

mod bypass;
mod host;
mod info_log;
mod lines;
mod options;
mod owners;
mod publish;
mod remember;
mod rest;
mod seen;
mod sessions;
mod takeover;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent_core::change::Change;
use nvshare_agent_core::conductor::Core;
use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{ObserverState, Seen};
use nvshare_agent_core::order::Order;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::{Reading, Report};
use nvshare_agent_core::settings::{Settings, SettingsError};
use nvshare_agent_core::snapshot::{self, Ended, State, Totals};
use nvshare_common::ids::{ClientId, DeviceId};
use tokio::sync::{mpsc, oneshot, watch};

use self::host::HostMemory;
use self::info_log::InfoLog;
use self::lines::Lines;
pub use self::options::{Options, OptionsError};
use self::owners::Owners;
use self::remember::Memory;
use self::seen::Paged;
use crate::clock;
use crate::control::{End, Event};
use crate::device::{Poll, Rhythm};
use crate::hostmem::Made;
use crate::{pods, proc};

/// How many inputs may wait for the conductor; then whoever sends waits too.
pub const INPUTS: usize = 4096;
/// How many batches of observations may wait. Any process can make a flood of them: they have a queue of their own, from
/// which nothing is taken while anything else waits.
const BATCHES: usize = 4;
/// How many inputs are taken before deciding anew.
const BATCH: usize = 256;
/// The shortest time between two looks at the counter pages, unless NVML was read.
const LOOK: Duration = Duration::from_millis(5);
/// The shortest time between two published states; the longest depends on what happens, see [`rest`].
const PUBLISH: Duration = Duration::from_millis(50);
/// When a reading that was asked for is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Whatever the conductor hears.
#[derive(Debug)]
pub enum Input {
    /// Something happened on a session.
    Session(SessionId, Event),
    /// A client's process ended, says its pidfd.
    Exited(Process),
    /// What NVML says.
    Devices(Report),
    /// Host memory was made, or not.
    Arena(Made),
    /// An operator changes settings.
    Set {
        /// All or none of these.
        changes: Vec<Change>,
        /// The settings from now on, or why nothing was changed.
        answer: oneshot::Sender<Result<Settings, SettingsError>>,
    },
    /// Something is ordered for one client; the answer says why it cannot be done, if so.
    Order(Order, oneshot::Sender<Result<(), String>>),
    /// Pods came, changed or went.
    Pods(Arc<pods::directory::Directory>),
    /// The device ids in the environment of a process.
    DeviceIds(Process, Vec<String>),
}

/// The way to the conductor, and its end.
pub fn inputs() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(INPUTS)
}

/// The way of the observer's batches to the conductor, in order; and its end.
pub fn observations() -> (mpsc::Sender<Vec<Seen>>, mpsc::Receiver<Vec<Seen>>) {
    mpsc::channel(BATCHES)
}

/// The conductor.
pub struct Conductor {
    core: Core,
    host: HostMemory,
    poll: Poll,
    inputs: mpsc::WeakSender<Input>,
    state: watch::Sender<Arc<State>>,
    lines: Lines,
    pages: BTreeMap<ClientId, Paged>,
    sessions: snapshot::Sessions,
    observer: ObserverState,
    owners: Owners,
    ended: VecDeque<Ended>,
    ended_totals: Totals,
    ended_count: u64,
    /// See [`State::earlier`].
    earlier: Totals,
    /// The directory of the clients' socket: lock files for the time without an agent lie there.
    directory: Option<PathBuf>,
    locked: BTreeSet<DeviceId>,
    awaited: BTreeSet<u32>,
    began: Moment,
    /// This process: clients that are older than it are another agent's.
    this: Option<Process>,
    looked: Moment,
    asked: Option<Moment>,
    rhythm: Rhythm,
    /// Batches of observations so far.
    batches: u64,
    /// What was read last of each device.
    read: BTreeMap<DeviceId, Reading>,
    memory: Memory,
    published: Moment,
    changed: bool,
    log: InfoLog,
}

impl Conductor {
    /// A conductor that reads devices through `poll` and is reached through `inputs`; with the watched state that it will
    /// publish. `socket` is the clients' socket.
    pub fn new(
        settings: Settings,
        poll: Poll,
        inputs: &mpsc::Sender<Input>,
        socket: Option<PathBuf>,
    ) -> std::io::Result<(Conductor, watch::Receiver<Arc<State>>)> {
        let (state, watched) = watch::channel(Arc::new(State::default()));
        let now = clock::now();
        let made = inputs.clone().downgrade();
        let host = HostMemory::start(move |arena| {
            // The conductor may be gone: then nobody wants it.
            if let Some(inputs) = made.upgrade() {
                let _ = inputs.blocking_send(Input::Arena(arena));
            }
        })?;
        let mut core = Core::new(settings);
        core.held_back = true;
        let conductor = Conductor {
            core,
            host,
            poll,
            inputs: inputs.downgrade(),
            state,
            lines: Lines::default(),
            pages: BTreeMap::new(),
            sessions: snapshot::Sessions {
                closed: End::LABELS.map(|reason| (reason.to_owned(), 0)).into(),
                ..snapshot::Sessions::default()
            },
            observer: ObserverState::default(),
            owners: Owners::default(),
            ended: VecDeque::new(),
            ended_totals: Totals::default(),
            ended_count: 0,
            earlier: Totals::default(),
            awaited: socket.as_deref().map(takeover::awaited).unwrap_or_default(),
            directory: socket.and_then(|path| Some(path.parent()?.to_owned())),
            locked: BTreeSet::new(),
            began: now,
            this: proc::process(std::process::id()),
            looked: Moment::NEVER,
            asked: None,
            rhythm: Rhythm::default(),
            batches: 0,
            read: BTreeMap::new(),
            memory: Memory::default(),
            published: Moment::NEVER,
            changed: true,
            log: InfoLog::default(),
        };
        // Whoever asks before the first turn: an agent that waits for clients, and not one without a release.
        let first = conductor.state(now);
        conductor.state.send_replace(Arc::new(first));
        Ok((conductor, watched))
    }

    /// Conducts until `stop`, or until nobody can send inputs any more; then what was learned is kept. Whoever still waits
    /// for an answer hears that there is none.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut observations: mpsc::Receiver<Vec<Seen>>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut pressing = self.turn(clock::now());
        loop {
            let pause = self.pause(pressing);
            tokio::select! {
                biased;
                () = &mut stop => break,
                input = inputs.recv() => {
                    let Some(input) = input else { break };
                    self.changed |= self.hear(input, clock::now());
                    for _ in 1..BATCH {
                        let Ok(input) = inputs.try_recv() else { break };
                        self.changed |= self.hear(input, clock::now());
                    }
                }
                Some(all) = observations.recv() => {
                    let now = clock::now();
                    self.batches += 1;
                    for seen in all {
                        match seen {
                            Seen::Process(seen) => self.observed(&seen, now),
                            Seen::Observer(health) => self.observer = health,
                        }
                    }
                    self.changed = true;
                }
                () = tokio::time::sleep(pause) => {}
            }
            if self.nothing_happens(clock::now()) {
                continue;
            }
            pressing = self.turn(clock::now());
        }
        self.keep_last().await;
    }

    /// Says whether that changed anything.
    fn hear(&mut self, input: Input, now: Moment) -> bool {
        match input {
            Input::Session(session, Event::Opened(opened)) => self.opened(session, *opened, now),
            Input::Session(session, Event::Said(message, descriptor)) => {
                self.said(session, message, descriptor, now);
            }
            Input::Session(session, Event::Closed(end)) => {
                *self.sessions.closed.entry(end.label().to_owned()).or_default() += 1;
                if let Some(line) = self.lines.close(session) {
                    self.disconnected(line.client, session, now);
                }
            }
            Input::Session(_, Event::Refused(refusal)) => {
                *self.sessions.refused.entry(refusal.label().to_owned()).or_default() += 1;
            }
            Input::Exited(process) => self.exited(process, now),
            Input::Devices(report) => {
                self.look(now);
                if self.asked.is_some_and(|asked| report.began >= asked) {
                    self.asked = None;
                }
                self.core.devices(&report, now);
                self.lock_files(&report);
                return self.is_news(report);
            }
            Input::Arena(made) => {
                if let Some((command, descriptor)) = self.host.made(&mut self.core, made, now) {
                    self.send(command, Some(descriptor));
                }
            }
            Input::Set { changes, answer } => {
                let result = self.core.settings.with(&changes);
                if let Ok(settings) = &result {
                    self.core.settings = settings.clone();
                    self.core.ledger.set(settings);
                }
                let _ = answer.send(result);
                self.published = Moment::NEVER;
            }
            Input::Order(order, answer) => {
                // Whoever asked may be gone.
                let _ = answer.send(self.core.order(order, now));
                self.published = Moment::NEVER;
                self.memory.pressing = true;
            }
            Input::Pods(directory) => self.pods(directory, now),
            Input::DeviceIds(process, ids) => self.device_ids(process, ids),
        }
        true
    }

    /// Decides and sends. Says whether time presses.
    fn turn(&mut self, now: Moment) -> bool {
        if self.core.held_back {
            self.take_over(now);
        }
        if now.since(self.looked) >= LOOK {
            self.look(now);
        }
        for client in self.core.bury(now) {
            self.ended(&client);
        }
        let outcome = self.core.decide(now);
        for command in self.core.terms(now) {
            self.send(command, None);
        }
        for command in self.core.limits() {
            self.send(command, None);
        }
        for command in outcome.commands {
            self.send(command, None);
        }
        let arenas = self.core.plan_arenas(now);
        for wanted in arenas.wanted {
            self.host.make(wanted);
        }
        for command in arenas.commands {
            self.send(command, None);
        }
        if outcome.read {
            self.ask(now);
        }
        let pressing = outcome.pressing || self.asked.is_some();
        self.follow(pressing, now);
        self.keep(now);
        let due = now.since(self.published);
        if (self.changed && due >= PUBLISH) || due >= self.publishes_every() {
            self.published = now;
            self.changed = false;
            let state = self.state(now);
            self.log.tell(&state);
            self.state.send_replace(Arc::new(state));
        }
        pressing
    }

    /// Asks for a reading, unless one is under way that will show what is to be seen.
    fn ask(&mut self, now: Moment) {
        if self.asked.is_none_or(|asked| now.since(asked) > ASK_AGAIN) {
            self.look(now);
            self.asked = Some(now);
            self.poll.now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_before_the_first_turn_is_true() {
        let (inputs, _heard) = inputs();
        let poll = crate::device::start("no-such-nvml.so".into(), |_| {}, |_| {}).expect("a thread");
        let settings = Settings::default();
        let (_conductor, state) = Conductor::new(settings.clone(), poll, &inputs, None).expect("a conductor");
        let told = state.borrow().clone();
        assert_eq!((told.release.as_str(), &told.settings), (env!("CARGO_PKG_VERSION"), &settings));
        assert!(!told.granting, "it has read no device yet");
    }
}
