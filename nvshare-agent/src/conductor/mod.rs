//! The one task that owns ledger and policy: it takes observations, requests and readings, and sends commands. What it
//! does with them is in the core; here are its inputs, its rhythm, and what it holds for each client.

mod bypass;
mod host;
mod lines;
mod owners;
mod publish;
mod remember;
mod rest;
mod story;
mod takeover;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent_core::change::Change;
use nvshare_agent_core::conductor::{Command, Core};
use nvshare_agent_core::ledger::{Client, Page, SessionId};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{Counts, Health, Observation};
use nvshare_agent_core::order::Order;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::{Reading, Report};
use nvshare_agent_core::settings::{Settings, SettingsError};
use nvshare_agent_core::snapshot::{Ended, State, Totals};
use nvshare_common::probe::Call;
use nvshare_common::protocol::{Answer, ToAgent, ToShim};
use nvshare_common::units::{ClientId, DeviceId};
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot, watch};

use self::host::HostMemory;
use self::lines::{Line, Lines};
use self::owners::Owners;
use self::remember::Memory;
use self::rest::digest;
use self::story::Story;
use crate::clock;
use crate::control::{Counted, CounterPage, Event, Opened, wait_for};
use crate::device::{Poll, Rhythm};
use crate::hostmem::Made;
use crate::pods;
use crate::proc;

/// How many inputs may wait for the conductor; then whoever sends waits too.
pub const INPUTS: usize = 4096;
/// How many batches of observations may wait. Any process can make a flood of them: they have a queue of their own, from
/// which nothing is taken while anything else waits.
const BATCHES: usize = 4;
/// How many inputs are taken before deciding anew.
const BATCH: usize = 256;
/// How long a new agent waits for the clients of the previous one.
const TAKEOVER: Duration = Duration::from_secs(5);
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
pub fn observations() -> (mpsc::Sender<Vec<Observation>>, mpsc::Receiver<Vec<Observation>>) {
    mpsc::channel(BATCHES)
}

/// A client's page, and what is known from looking at it.
struct Paged {
    page: CounterPage,
    /// Of all that it said at the last look: whether anything has changed since.
    digest: u64,
    bypass: bypass::Watch,
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
    sessions: nvshare_agent_core::snapshot::Sessions,
    observer: Health,
    owners: Owners,
    ended: VecDeque<Ended>,
    ended_totals: Totals,
    ended_count: u64,
    /// The directory of the clients' socket: lock files for the time without an agent lie there.
    directory: Option<PathBuf>,
    locked: BTreeSet<DeviceId>,
    awaited: BTreeSet<u32>,
    began: Moment,
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
    story: Story,
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
            sessions: nvshare_agent_core::snapshot::Sessions {
                closed: crate::control::End::LABELS.map(|reason| (reason.to_owned(), 0)).into(),
                ..nvshare_agent_core::snapshot::Sessions::default()
            },
            observer: Health::default(),
            owners: Owners::default(),
            ended: VecDeque::new(),
            ended_totals: Totals::default(),
            ended_count: 0,
            awaited: socket.as_deref().map(takeover::awaited).unwrap_or_default(),
            directory: socket.and_then(|path| Some(path.parent()?.to_owned())),
            locked: BTreeSet::new(),
            began: now,
            looked: Moment::NEVER,
            asked: None,
            rhythm: Rhythm::default(),
            batches: 0,
            read: BTreeMap::new(),
            memory: Memory::default(),
            published: Moment::NEVER,
            changed: true,
            story: Story::default(),
        };
        Ok((conductor, watched))
    }

    /// Conducts until nobody can send inputs any more.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut observations: mpsc::Receiver<Vec<Observation>>,
    ) {
        let mut pressing = self.turn(clock::now());
        loop {
            let pause = self.pause(pressing);
            tokio::select! {
                biased;
                input = inputs.recv() => {
                    let Some(input) = input else { return };
                    self.changed |= self.hear(input, clock::now());
                    for _ in 1..BATCH {
                        let Ok(input) = inputs.try_recv() else { break };
                        self.changed |= self.hear(input, clock::now());
                    }
                }
                Some(all) = observations.recv() => {
                    let now = clock::now();
                    self.batches += 1;
                    for observation in all {
                        self.observed(observation, now);
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
            Input::Session(_, Event::Refused(why)) => {
                *self.sessions.refused.entry(why.to_owned()).or_default() += 1;
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

    fn opened(&mut self, session: SessionId, opened: Opened, now: Moment) {
        let Opened { peer, hello, page, outbox, counted } = opened;
        self.awaited.remove(&peer.process.pid);
        let new = self.core.ledger.client_of(peer.process).is_none();
        let client = self.core.hello(peer.process, session, &hello, now);
        self.core.ledger.named(client, peer.name, peer.cgroup.clone());
        if new {
            self.recall(peer.process, now);
        }
        self.meet(peer.process, &peer.cgroup, now);
        tracing::info!(
            client = client.0,
            pid = peer.process.pid,
            shim = hello.release,
            devices = hello.devices.len(),
            arenas = hello.arenas,
            new,
            "client connected"
        );
        match page {
            Ok(page) => {
                let calls = view(&page).calls;
                let bypass = bypass::Watch::since(&calls, clock::now(), threads(peer.process.pid));
                self.pages.insert(client, Paged { page, digest: 0, bypass });
            }
            Err(why) => {
                self.pages.remove(&client);
                self.core.ledger.unpaged(client);
                tracing::warn!(client = client.0, pid = peer.process.pid, %why, "no counters");
            }
        }
        self.lines.dismiss(client);
        self.host.left(client);
        self.sessions.opened += 1;
        let [limits, sizes] = self.core.first_limits(client);
        if outbox.answer(&Answer::Welcome { client, limits, sizes }).is_ok() {
            self.lines.open(session, Line { client, outbox });
            self.tell_bypass(client);
        } else {
            // It is over already, and that it was closed finds no line.
            self.disconnected(client, session, now);
        }
        if new {
            self.watch(peer.process, peer.pidfd, counted);
        }
        if let Some(paged) = self.pages.get(&client) {
            self.core.sample(client, &view(&paged.page), now);
        }
    }

    /// A shim that is to move nothing any more knows that, and says so to the next agent.
    fn tell_bypass(&mut self, client: ClientId) {
        let known = self.core.ledger.client(client).filter(|client| client.bypass());
        if let Some(session) = known.and_then(Client::session) {
            self.send(Command { client, session, message: ToShim::Bypassed }, None);
        }
    }

    /// Tells the conductor when the process ends; so long it counts as connected.
    fn watch(&self, process: Process, pidfd: OwnedFd, counted: Arc<Counted>) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            match wait_for(pidfd, Interest::READABLE) {
                Ok(pidfd) => drop(pidfd.readable().await),
                // Without it the process is looked for now and then.
                Err(error) => {
                    tracing::warn!(pid = process.pid, %error, "cannot watch a process");
                    while proc::process(process.pid) == Some(process) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(Input::Exited(process)).await;
            }
            drop(counted);
        });
    }

    fn said(&mut self, session: SessionId, message: ToAgent, descriptor: Option<OwnedFd>, now: Moment) {
        let Some(client) = self.lines.get(session).map(|line| line.client) else { return };
        let measure = || host::measure(descriptor.ok_or("no descriptor")?);
        let heard = self.core.hear_with(client, session, message, measure, now);
        if let Some((arena, fate)) = heard.arena {
            self.host.follow(client, arena, fate);
        }
        if heard.read {
            // Until there is an answer it is asked for again: see `turn`.
            self.ask(now);
        }
        for command in heard.commands {
            self.send(command, None);
        }
    }

    /// A client's session is over.
    fn disconnected(&mut self, client: ClientId, session: SessionId, now: Moment) {
        self.core.disconnected(client, session, now);
        self.host.left(client);
    }

    fn exited(&mut self, process: Process, now: Moment) {
        self.awaited.remove(&process.pid);
        let Some(client) = self.core.ledger.client_of(process) else { return };
        tracing::info!(client = client.0, pid = process.pid, "client ended");
        // The page outlives its process; this is its last word.
        if let Some(paged) = self.pages.get(&client) {
            self.core.sample(client, &view(&paged.page), now);
        }
        self.core.exited(client, now);
        self.host.left(client);
        self.lines.dismiss(client);
        self.ask(now);
    }

    fn observed(&mut self, observation: Observation, now: Moment) {
        use Observation as O;
        let process = match &observation {
            O::Observer(health) => {
                self.observer = health.clone();
                return;
            }
            O::Activity { process, .. }
            | O::Allocated { process, .. }
            | O::Freed { process, .. }
            | O::Mapped { process, .. }
            | O::Unmapped { process, .. }
            | O::Launched { process, .. }
            | O::Prefetched { process, .. }
            | O::Advised { process, .. }
            | O::Uvm { process, .. }
            | O::Created { process, .. }
            | O::Retained { process, .. }
            | O::Released { process, .. }
            | O::ContextMade { process, .. }
            | O::ContextEnded { process, .. }
            | O::ContextReset { process, .. }
            | O::Exec { process }
            | O::Exited { process } => self.known(*process),
        };
        let client = self.core.ledger.client_of(process);
        let observed = self.core.ledger.observe(process, &observation);
        if observed.is_some_and(|observed| observed.name().is_empty()) {
            let read = |file| std::fs::read_to_string(format!("/proc/{}/{file}", process.pid));
            // A process may have no name; it is asked once all the same.
            let name = read("comm").unwrap_or_default();
            let name = Some(name.trim_end()).filter(|name| !name.is_empty());
            self.core.ledger.observed_named(process, name.unwrap_or("?"));
            if client.is_none() {
                self.meet(process, pods::cgroup::path(&read("cgroup").unwrap_or_default()), now);
            }
        }
        match (&observation, client) {
            (O::Activity { counts, first_call, last_call, last_launch, .. }, Some(client)) => {
                self.seen(client, counts, (*first_call, *last_call), *last_launch);
            }
            (O::Activity { counts, lost, .. }, None) => {
                self.seen_of_the_dead(process, counts, lost.iter().sum());
            }
            (O::Exited { .. }, _) => self.gone(process),
            // The program that had the shim is gone, and what it held with it; the process lives on without.
            (O::Exec { .. }, Some(client))
                if self.core.ledger.client(client).is_some_and(|client| client.session().is_none()) =>
            {
                self.exited(process, now);
            }
            (observation, Some(client)) => self.core.ledger.warm(client, observation, now),
            _ => {}
        }
    }

    /// A process ended. A client's counts are kept until it is buried.
    fn gone(&mut self, process: Process) {
        if self.core.ledger.latest_of(process.pid).is_none_or(|client| client.process() != process) {
            self.forget(process);
        }
    }

    /// A process that was reaped before the observer looked has no start: it is the client with that pid.
    fn known(&self, process: Process) -> Process {
        if process.start != 0 {
            return process;
        }
        self.core.ledger.latest_of(process.pid).map_or(process, Client::process)
    }

    /// The uprobes counted a client's calls. They were read before the page is: see [`bypass`].
    fn seen(
        &mut self,
        id: ClientId,
        counts: &Counts,
        (first_call, last_call): (Moment, Moment),
        last_launch: Moment,
    ) {
        let Some(paged) = self.pages.get_mut(&id) else { return };
        self.core.ledger.active(id, last_launch);
        let Some(client) = self.core.ledger.client(id) else { return };
        // What was called before its Hello may have been called by the program before, which had another page.
        if client.bypass() || last_call < client.greeted() {
            return;
        }
        let (page, pid) = (view(&paged.page).calls, client.process().pid);
        let looked = paged.bypass.look(counts, &page, self.batches, first_call, || threads(pid));
        let Some(call) = looked else { return };
        self.core.ledger.bypassed(id);
        let call = Call::ALL[call].name();
        tracing::warn!(
            client = id.0,
            pid,
            call,
            "driver calls that its shim did not make: its memory is never moved"
        );
        self.memory.pressing = true;
        self.tell_bypass(id);
    }

    /// The last counts of a client often come after its end.
    fn seen_of_the_dead(&mut self, process: Process, counts: &Counts, lost: u64) {
        let same = |ended: &&mut Ended| {
            ended.process.pid == process.pid && (process.start == 0 || ended.process.start == process.start)
        };
        if let Some(ended) = self.ended.iter_mut().rev().find(same) {
            ended.totals.application_seen = Totals::named(&counts.application);
            ended.totals.engine_seen = Totals::named(&counts.engine);
            ended.totals.lost = lost;
            self.forget(process);
        }
    }

    /// Looks at all counter pages.
    fn look(&mut self, now: Moment) {
        self.looked = now;
        for (client, paged) in &mut self.pages {
            paged.digest = digest(&paged.page);
            self.core.sample(*client, &view(&paged.page), now);
        }
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
            self.story.tell(&state);
            self.state.send_replace(Arc::new(state));
        }
        pressing
    }

    fn take_over(&mut self, now: Moment) {
        self.awaited.retain(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
        let over = now.since(self.began) >= TAKEOVER;
        if self.awaited.is_empty() || over {
            self.core.begin_granting(now);
            let (clients, missing) = (self.core.ledger.clients().len(), self.awaited.len());
            if missing > 0 {
                tracing::info!(
                    clients,
                    missing,
                    "granting begins; clients that did not come count as foreign"
                );
            } else if clients > 0 {
                tracing::info!(clients, "granting begins; all clients of the previous agent came");
            } else {
                tracing::debug!("granting begins");
            }
        }
    }

    /// Asks for a reading, unless one is under way that will show what is to be seen.
    fn ask(&mut self, now: Moment) {
        if self.asked.is_none_or(|asked| now.since(asked) > ASK_AGAIN) {
            self.look(now);
            self.asked = Some(now);
            self.poll.now();
        }
    }

    fn send(&mut self, command: Command, descriptor: Option<Arc<OwnedFd>>) {
        let Some(line) = self.lines.get(command.session) else { return };
        tracing::debug!(client = command.client.0, message = ?command.message, "command");
        if line.outbox.send(&command.message, descriptor).is_err() {
            tracing::warn!(client = command.client.0, "it does not read what it is sent: session closed");
            line.outbox.dismiss();
            self.lines.close(command.session);
            *self.sessions.closed.entry("deaf".to_owned()).or_default() += 1;
            self.disconnected(command.client, command.session, clock::now());
        }
    }

    fn ended(&mut self, client: &Client) {
        let totals = self.totals(client);
        self.pages.remove(&client.id());
        self.ended_count += 1;
        if self.ended.len() == nvshare_agent_core::snapshot::ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.ended_totals.add(&oldest.totals);
        }
        self.ended.push_back(Ended {
            client: client.id(),
            process: client.process(),
            name: client.name().to_owned(),
            totals,
        });
        self.forget(client.process());
    }

    /// Files on which clients without an agent take turns: they cannot create them in a read-only mount.
    fn lock_files(&mut self, report: &Report) {
        let Some(directory) = &self.directory else { return };
        for reading in &report.devices {
            if self.locked.insert(reading.device) {
                let path = directory.join(format!("device-{}.lock", reading.device));
                let made = std::fs::OpenOptions::new().create(true).append(true).open(&path);
                if let Err(error) = made {
                    tracing::warn!(path = %path.display(), %error, "cannot create a lock file for clients without an agent");
                }
            }
        }
    }
}

/// How many threads a process has.
fn threads(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    // One that has ended calls nothing any more.
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The page at this moment.
fn view(page: &CounterPage) -> Page {
    // No count comes as far by itself; sums of what a client may write there must not overflow.
    let possible = |counts: [u64; Call::COUNT]| counts.map(|count| count.min(1 << 56));
    let (application, engine) = page.calls();
    Page {
        calls: Counts { application: possible(application), engine: possible(engine) },
        waiting: page.waiting.load(std::sync::atomic::Ordering::Relaxed),
        holdings: page.holdings().collect(),
    }
}
