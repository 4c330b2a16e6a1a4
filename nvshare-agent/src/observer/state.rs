//! The observer's thread: it waits for whatever happens, and takes it in.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use nvshare_agent_core::observation::{ObserverState, Seen};
use nvshare_common::event::{Loss, RING_BYTES, Record};
use rustix::event::{Timespec, epoll};

use super::attachments::Attachments;
use super::find::InUse;
use super::kernel_log::KernelLog;
use super::load_error::LoadError;
use super::mappings::{Mapped, Mappings};
use super::part::Part;
use super::programs::Programs;
use super::slots::Slots;
use super::uvm::Uvm;
use super::watch::Watch;
use super::{Options, find};

/// Counts are read, and records drained, this often while calls are made; a full ring buffer wakes the observer before.
const TICK: Duration = Duration::from_millis(10);
/// After so long without a call the observer sleeps: the next call wakes it.
const QUIET: Duration = Duration::from_millis(100);
/// It looks all the same, this often.
const ASLEEP: Duration = Duration::from_secs(1);
/// Mappings can come by the thousand (a build on the node): after some were read the next wait so long.
const MAPPINGS_EVERY: Duration = Duration::from_millis(2);
/// However much the events miss, the looks at all processes are so far apart at least.
const SCAN_AGAIN: Duration = Duration::from_secs(1);
/// So often it is looked whether a file that was taken for another one still has that one's probes.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// The counts of the observer itself are told this often at most.
const HEALTH_EVERY: Duration = Duration::from_millis(500);
/// How often places were hit is told this often, while there are calls.
const HITS_EVERY: Duration = Duration::from_secs(2);
/// So long after the last loss it is not a problem any more.
const BLIND: Duration = Duration::from_secs(10);
/// No more observations than this go into one batch.
const BATCH: usize = 4096;

/// Why the observer did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot map the counts of the eBPF programs: {0} (Linux before 5.5?)")]
    Slots(io::Error),
    #[error("cannot wait for events: {0}")]
    Epoll(io::Error),
}

/// Who woke us; the number that epoll carries. Slots are below.
const STOP: u64 = 1 << 32;
const RING: u64 = 2 << 32;
const LOG: u64 = 3 << 32;
const REWRITES: u64 = 4 << 32;
const MAPPINGS: u64 = 5 << 32;

/// All that the observer's thread has.
pub(super) struct State {
    /// First: when the probes are gone nothing more is counted.
    attachments: Attachments,
    records: RingBuf<MapData>,
    watch: Watch,
    uvm: Uvm,
    /// Whose files and managed memory are looked for; none: everybody's.
    part: Option<Part>,
    log: Option<EbpfLogger<KernelLog>>,
    mappings: Vec<Mappings>,
    epoll: Arc<OwnedFd>,
    discover: bool,
    scan_every: Duration,
    scan_at: Instant,
    scanned_at: Instant,
    compared_at: Instant,
    health: ObserverState,
    health_at: Instant,
    /// About the ways in which mappings are found.
    problems: Vec<String>,
    tell: Vec<Seen>,
    /// When anything was last read, and whether the kernel was asked to wake us by the next call since.
    moved_at: Instant,
    asleep: bool,
    mapped_at: Instant,
    /// Losses were reported as a problem last.
    blind: bool,
}

impl State {
    pub(super) fn begin(options: &Options, stop: &OwnedFd) -> Result<State, BeginError> {
        let (mut programs, maps) = Programs::load(options)?;
        let slots = Slots::new(maps.slots, maps.lanes, maps.owners, maps.free).map_err(BeginError::Slots)?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| BeginError::Epoll(error.into()))?;
        let epoll = Arc::new(epoll);
        let mut problems = Vec::new();
        let log = EbpfLogger::init_with_logger(programs.ebpf(), KernelLog)
            .inspect_err(|error| problems.push(format!("the eBPF programs cannot log: {error}")))
            .ok();
        let uvm = Uvm::new(programs.ebpf(), options);
        let mut mappings = Vec::new();
        if options.discover {
            // Before the first look at all processes, so that nobody slips in between.
            mappings = Mappings::of_all_cpus().unwrap_or_else(|error| {
                problems.push(format!(
                    "cannot be told of new mappings ({error}; CAP_PERFMON?): new libraries are found every {} s only",
                    options.scan_every.as_secs()
                ));
                Vec::new()
            });
        }
        let state = State {
            attachments: Attachments::new(programs, options.part.clone()),
            records: maps.records,
            watch: Watch::new(slots, Arc::clone(&epoll)),
            uvm,
            part: options.part.clone(),
            log,
            mappings,
            epoll,
            discover: options.discover,
            scan_every: options.scan_every,
            scan_at: Instant::now() + options.scan_every,
            scanned_at: Instant::now(),
            compared_at: Instant::now(),
            health: ObserverState::default(),
            health_at: Instant::now(),
            problems,
            tell: Vec::new(),
            moved_at: Instant::now(),
            asleep: false,
            mapped_at: Instant::now(),
            blind: false,
        };
        state.wait_for(stop, STOP)?;
        state.wait_for(&state.records, RING)?;
        if let Some(log) = &state.log {
            state.wait_for(log, LOG)?;
        }
        if let Some(rewrites) = state.attachments.descriptor() {
            state.wait_for(rewrites, REWRITES)?;
        }
        for (number, mapping) in state.mappings.iter().enumerate() {
            state.wait_for(mapping.descriptor(), MAPPINGS + number as u64)?;
        }
        Ok(state.look(&options.libraries))
    }

    fn wait_for(&self, what: impl AsFd, number: u64) -> Result<(), BeginError> {
        add(&self.epoll, what, number).map_err(BeginError::Epoll)
    }

    /// The first look: named libraries, then all processes.
    fn look(mut self, libraries: &[PathBuf]) -> State {
        for path in libraries {
            self.attachments.named(path);
        }
        if self.discover {
            self.scan();
        } else {
            self.uvm.look(self.attachments.ebpf());
        }
        self.health.scanned = true;
        self.update_health();
        self
    }

    /// Says why it ended, if neither whoever listens nor `stop` ended it.
    pub(super) fn run(mut self, tell: &mut impl FnMut(Vec<Seen>) -> bool) -> Option<String> {
        let mut events = Vec::with_capacity(64);
        loop {
            if !self.flush(tell) {
                return None;
            }
            let mut dead = self.watch.dead_on_arrival();
            let mut mapped = Vec::new();
            let mut stop = false;
            let timeout = if dead.is_empty() { self.rest() } else { Duration::ZERO };
            events.clear();
            let timeout =
                Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Some(format!("the observer cannot wait for events any more: {error}"));
                }
            }
            for event in &events {
                match event.data.u64() {
                    STOP => stop = true,
                    RING | LOG => {}
                    REWRITES => self.attachments.rewritten(),
                    number @ MAPPINGS.. => mapped.push((number - MAPPINGS) as usize),
                    slot => dead.push(slot as u32),
                }
            }
            if !mapped.is_empty() {
                std::thread::sleep(MAPPINGS_EVERY.saturating_sub(self.mapped_at.elapsed()));
                for number in mapped {
                    self.read_mappings(number);
                }
                self.mapped_at = Instant::now();
            }
            if stop {
                // Links first: then the counts are final.
                self.attachments.detach();
            }
            if !self.take_in(&dead, tell) {
                return None;
            }
            if let Some(log) = &mut self.log {
                log.flush();
            }
            if self.discover && Instant::now() >= self.scan_at {
                self.scan();
            }
            if self.compared_at.elapsed() >= COMPARE_EVERY {
                self.attachments.look_at_the_same();
                self.compared_at = Instant::now();
            }
            self.update_health();
            if stop {
                self.flush(tell);
                return None;
            }
        }
    }

    /// How long nothing is looked at, unless something happens.
    fn rest(&mut self) -> Duration {
        if self.moved_at.elapsed() < QUIET {
            return TICK;
        }
        let slept = std::mem::replace(&mut self.asleep, true);
        self.watch.sleep();
        if !slept {
            // Once more: somebody may have made a call before the kernel knew that we sleep.
            return Duration::ZERO;
        }
        let scan = self.scan_at.saturating_duration_since(Instant::now());
        if self.discover { ASLEEP.min(scan) } else { ASLEEP }
    }

    /// New processes, records, counts, deaths: in this order, so that a process is known before its records are read, and
    /// its records are read before it is forgotten. `false` if nobody listens any more.
    fn take_in(&mut self, dead: &[u32], tell: &mut impl FnMut(Vec<Seen>) -> bool) -> bool {
        self.watch.cover(self.attachments.coverage());
        let (records, told) = (self.health.records, self.tell.len());
        self.watch.find_new();
        // Not for ever, if records come faster than they are read: as many as there can have been at the beginning.
        for _ in 0..RING_BYTES as usize / Record::HEAD_BYTES {
            let Some(item) = self.records.next() else { break };
            let record = Record::decode(&item);
            drop(item);
            self.health.records += 1;
            match record {
                Some(record) => self.watch.record(&record, &mut self.tell),
                None => {
                    tracing::warn!("a record of the wrong size: are the eBPF programs of another release?");
                }
            }
            if self.tell.len() >= BATCH && !self.flush(tell) {
                return false;
            }
        }
        self.watch.report(&mut self.tell);
        if self.health.records != records || self.tell.len() != told || !dead.is_empty() {
            self.moved_at = Instant::now();
            self.asleep = false;
        }
        if self.uvm.seen(&self.tell) {
            self.uvm.look(self.attachments.ebpf());
            self.uvm.seen(&self.tell);
        }
        // The last of a process, while it is still known.
        self.uvm.read(!dead.is_empty(), |pid| self.watch.process(pid), &mut self.tell);
        for slot in dead {
            self.watch.died(*slot, &mut self.tell);
        }
        true
    }

    /// Hands over what there is; `false` if nobody listens any more.
    fn flush(&mut self, tell: &mut impl FnMut(Vec<Seen>) -> bool) -> bool {
        self.tell.is_empty() || tell(std::mem::take(&mut self.tell))
    }

    fn read_mappings(&mut self, number: usize) {
        let State { mappings, attachments, scan_at, scanned_at, .. } = self;
        let found = |Mapped { pid, library }: Mapped| attachments.found(pid, &library);
        let lost = mappings[number].read(found);
        if lost {
            tracing::debug!("events of mappings were lost: looking at all processes");
        }
        if lost || attachments.postponed() {
            *scan_at = (*scan_at).min(*scanned_at + SCAN_AGAIN);
        }
    }

    fn scan(&mut self) {
        self.scanned_at = Instant::now();
        self.scan_at = self.scanned_at + self.scan_every;
        let attachments = &mut self.attachments;
        attachments.begin_look();
        let mut users = BTreeSet::new();
        let found = |pid, used: &InUse| {
            users.insert(pid);
            attachments.found(pid, used);
        };
        if let Err(error) = find::scan(found) {
            tracing::warn!(%error, "cannot look at the node's processes (/proc)");
        }
        self.attachments.end_look(2 * self.scan_every + self.scan_every / 2);
        if self.attachments.postponed() {
            self.scan_at = self.scan_at.min(self.scanned_at + SCAN_AGAIN);
        }
        // The module may have been loaded, or loaded again.
        self.uvm.look(self.attachments.ebpf());
        for pid in users.into_iter().filter(|pid| self.part.as_ref().is_none_or(|part| part.has(*pid))) {
            self.uvm.found(pid);
        }
    }

    /// Tells how the observer is, when that changed.
    fn update_health(&mut self) {
        let (losses, unattributed) = self.watch.losses();
        let lost = losses.iter().sum();
        let attachments = self.attachments.changed();
        let first = !self.health.loaded;
        let uvm = self.uvm.health();
        let changed = attachments || uvm.source != self.health.uvm.source || uvm.why != self.health.uvm.why;
        let counted =
            (self.health.lost, self.health.unattributed) != (lost, unattributed) || uvm != self.health.uvm;
        // That it is blind is said for a while, and taken back.
        let over = self.blind && self.health_at.elapsed() >= BLIND;
        let hit = self.moved_at > self.health_at && self.health_at.elapsed() >= HITS_EVERY;
        if !(first || changed || over || hit || counted && self.health_at.elapsed() >= HEALTH_EVERY) {
            return;
        }
        self.health.loaded = true;
        self.health.uvm = uvm;
        let blind = blind(&losses, &self.health.losses, unattributed, self.health.unattributed);
        (self.health.lost, self.health.unattributed) = (lost, unattributed);
        self.health.losses = losses;
        self.blind = blind.is_some();
        self.health.problems =
            self.problems.iter().cloned().chain(self.attachments.problems()).chain(blind).collect();
        self.health.attachments = self.attachments.list();
        self.health_at = Instant::now();
        tracing::debug!(processes = self.watch.processes(), lost, unattributed, "observing");
        self.tell.push(Seen::Observer(self.health.clone()));
    }
}

/// What was not seen since the last word, if so.
fn blind(
    losses: &[u64; Loss::COUNT],
    before: &[u64; Loss::COUNT],
    unattributed: u64,
    charged_before: u64,
) -> Option<String> {
    // What was begun before it was observed is no sign of anything.
    let news =
        [(Loss::Full, "no room in the ring"), (Loss::Throttled, "too many of one process or container")]
            .into_iter()
            .map(|(how, why)| (losses[how as usize].saturating_sub(before[how as usize]), why))
            .chain([(unattributed.saturating_sub(charged_before), "calls of processes without a slot")])
            .filter(|(count, _)| *count > 0)
            .map(|(count, why)| format!("{count}: {why}"));
    let news: Vec<String> = news.collect();
    (!news.is_empty()).then(|| format!("the observer misses what is called ({})", news.join(", ")))
}

pub(super) fn add(epoll: &OwnedFd, what: impl AsFd, number: u64) -> io::Result<()> {
    let data = epoll::EventData::new_u64(number);
    epoll::add(epoll, what.as_fd(), data, epoll::EventFlags::IN).map_err(|error| {
        let descriptor = what.as_fd().as_raw_fd();
        io::Error::other(format!("descriptor {descriptor}: {error}"))
    })
}
