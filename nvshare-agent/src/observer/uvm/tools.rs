//! Managed memory, by the counters of NVIDIA's own module: each process that has some gets a tracker, bound to the process's own
//! descriptor of `/dev/nvidia-uvm` (`pidfd_getfd`; the process notices nothing).
//!
//! Only processes with managed memory: those that were seen to allocate some, and those that were there before us and map some.
//! What a tracker keeps alive, and who lets go of it in time, is told in `held`.

mod counts;
mod held;
mod module;
mod page;
mod place;
mod stand_in;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use nvshare_agent_core::observation::{Observation, Paged, Seen, What};
use nvshare_agent_core::process::Process;
use nvshare_common::ids::DeviceId;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::observer::load_error::chain;
use crate::observer::options::Tools as Paths;
use crate::proc;
use counts::Counts;
use held::Held;
use module::{Door, Module, Refused};
use page::Page;
use place::Place;
use stand_in::StandIn;

/// How many processes are counted at a time: each takes some descriptors.
const MOST: usize = 256;

/// Why the counters cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Why {
    #[error("the module nvidia_uvm is not loaded")]
    NoModule,
    #[error("cannot open {path}: {1}", path = .0.display())]
    Open(PathBuf, String),
    #[error("the counters of {path} cannot be had: {1}", path = .0.display())]
    Refused(PathBuf, String),
}

/// The processes whose counters the eBPF programs must know of.
type Known = aya::maps::HashMap<MapData, u32, u32>;

/// The source.
pub(super) struct Tools {
    door: Box<dyn Door>,
    path: PathBuf,
    place: Place,
    cards: Vec<DeviceId>,
    held: Held,
    known: Option<Known>,
    counted: HashMap<u32, Counted>,
    /// Looked at in vain since the last look at all processes.
    without: HashSet<Process>,
    /// Since the module was loaded: what it answered, if nobody's counters could be had; and whether somebody's could.
    refused: Option<String>,
    works: bool,
    /// The module's directory, another one after it was loaded again.
    module: Option<u64>,
    modules: PathBuf,
    on: bool,
    /// Processes whose counters could not be had.
    missed: u64,
}

/// A process that is counted.
struct Counted {
    process: Process,
    /// Its descriptor that the trackers were bound to.
    descriptor: RawFd,
    key: u64,
    pages: Vec<Told>,
}

/// A page, and what was told of it last.
struct Told {
    device: Option<DeviceId>,
    page: Arc<Page>,
    counts: Counts,
}

/// A process's counters are not there.
enum NotCounted {
    /// It is dead, or has no VA space.
    Without,
    /// Somebody says no.
    Refused(Refused),
    /// The system says no.
    System(&'static str, io::Error),
}

impl Tools {
    /// Off until the first look. Takes the maps out of the object; says what is wrong.
    pub(super) fn new(ebpf: &mut Ebpf, paths: &Paths, modules: PathBuf) -> Result<Tools, String> {
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| format!("the eBPF programs have no map `{name}`"));
        let endings = RingBuf::try_from(take("UVM_ENDINGS")?).map_err(|error| chain(&error))?;
        let known = Known::try_from(take("UVM_HELD")?).map_err(|error| chain(&error))?;
        let held = Held::new(Some(endings))
            .map_err(|error| format!("cannot wait for the ends of processes: {error}"))?;
        let (door, path, place): (Box<dyn Door>, _, _) = match paths.clone() {
            Paths::Module { device, devices, minor, cards } => {
                (Box::new(Module { path: device.clone() }), device, Place::Device { devices, minor, cards })
            }
            Paths::File(path) => (Box::new(StandIn { path: path.clone() }), path.clone(), Place::File(path)),
        };
        Ok(Tools::with(door, path, place, held, Some(known), modules))
    }

    fn with(
        door: Box<dyn Door>,
        path: PathBuf,
        place: Place,
        held: Held,
        known: Option<Known>,
        modules: PathBuf,
    ) -> Tools {
        Tools {
            door,
            path,
            place,
            cards: Vec::new(),
            held,
            known,
            counted: HashMap::new(),
            without: HashSet::new(),
            refused: None,
            works: false,
            module: None,
            modules,
            on: false,
            missed: 0,
        }
    }

    /// Whether counters can be had now. The module may have come, gone, or have been loaded again.
    pub(super) fn look(&mut self) -> Result<(), Why> {
        self.without.clear();
        let module = fs::metadata(self.modules.join("nvidia_uvm")).ok().map(|directory| directory.ino());
        if module != self.module {
            self.module = module;
            (self.refused, self.works) = (None, false);
        }
        let found = self.find();
        self.on = found.is_ok();
        if !self.on {
            self.let_go();
        }
        found
    }

    fn find(&mut self) -> Result<(), Why> {
        if !self.place.is_there() {
            return Err(Why::NoModule);
        }
        if let Some(why) = &self.refused {
            return Err(Why::Refused(self.path.clone(), why.clone()));
        }
        self.door.knock().map_err(|error| Why::Open(self.path.clone(), error.to_string()))?;
        self.cards = self.place.cards();
        Ok(())
    }

    /// How many processes are counted, and how many could not be.
    pub(super) fn figures(&self) -> (u64, u64) {
        (self.counted.len() as u64, self.missed)
    }

    /// A process that uses the driver, found by a look at all of them.
    pub(super) fn found(&mut self, pid: u32) {
        if !self.on || pid == std::process::id() || self.counted.contains_key(&pid) {
            return;
        }
        let Some(process) = proc::process(pid).filter(|process| !self.without.contains(process)) else {
            return;
        };
        if place::has_managed(pid, &self.place.open(pid)) {
            self.count(process);
        } else {
            self.without.insert(process);
        }
    }

    /// A process that has allocated managed memory.
    pub(super) fn allocated(&mut self, process: Process) {
        if self.on && !self.counted.contains_key(&process.pid) && !self.without.contains(&process) {
            self.count(process);
        }
    }

    fn count(&mut self, process: Process) {
        if self.counted.len() >= MOST {
            self.missed += 1;
            self.without.insert(process);
            return;
        }
        if let Some(known) = &mut self.known
            && let Err(error) = known.insert(process.pid, 0, 0)
        {
            // Nobody would tell us of its end in time.
            tracing::debug!(pid = process.pid, error = chain(&error), "managed memory is not counted");
            self.missed += 1;
            self.without.insert(process);
            return;
        }
        match self.begin(process) {
            Ok(counted) => {
                tracing::debug!(pid = process.pid, "managed memory is counted");
                self.works = true;
                self.counted.insert(process.pid, counted);
            }
            Err(why) => {
                self.unknown(process.pid);
                self.without.insert(process);
                self.not_counted(process.pid, why);
            }
        }
    }

    fn not_counted(&mut self, pid: u32, why: NotCounted) {
        let (why, everybodys) = match why {
            NotCounted::Without => return,
            NotCounted::Refused(why @ Refused::Status(_)) => (why.to_string(), false),
            NotCounted::Refused(why @ Refused::Call(..)) => (why.to_string(), true),
            NotCounted::System(what, error) => (format!("{what}: {error}"), true),
        };
        tracing::debug!(pid, why, "managed memory is not counted");
        self.missed += 1;
        if everybodys && !self.works {
            self.refused = Some(why);
            self.on = false;
        }
    }

    /// Binds trackers to the process's descriptor: one for everything, and one for each card if there are several.
    fn begin(&mut self, process: Process) -> Result<Counted, NotCounted> {
        let pid = Pid::from_raw(process.pid as i32).ok_or(NotCounted::Without)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| NotCounted::Without)?;
        // The number may be another's by now; that descriptor is of who has it from here on.
        if proc::process(process.pid) != Some(process) || proc::is_ending(process.pid) {
            return Err(NotCounted::Without);
        }
        let mut last = NotCounted::Without;
        for open in self.place.open(process.pid) {
            let space = match pidfd_getfd(&descriptor, open.descriptor, PidfdGetfdFlags::empty()) {
                Ok(space) => space,
                // Closed, or dead.
                Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => continue,
                Err(error) => {
                    last = NotCounted::System("cannot take a process's descriptor", error.into());
                    continue;
                }
            };
            match self.bind(&space) {
                Ok((trackers, pages)) => {
                    drop(space);
                    let key = self.held.hold(process.pid, trackers, descriptor);
                    let key = key.map_err(|error| NotCounted::System("cannot wait for its end", error))?;
                    // It may have begun to end before it was held, when nobody could be told.
                    if proc::is_ending(process.pid) {
                        self.held.release(key);
                        return Err(NotCounted::Without);
                    }
                    return Ok(Counted { process, descriptor: open.descriptor, key, pages });
                }
                Err(why) => last = why,
            }
        }
        Err(last)
    }

    fn bind(&self, space: &OwnedFd) -> Result<(Vec<OwnedFd>, Vec<Told>), NotCounted> {
        let only = match self.cards[..] {
            [card] => Some(card),
            _ => None,
        };
        let each = self.cards.iter().filter(|_| only.is_none()).map(|card| (Some(*card), Some(*card)));
        let (mut trackers, mut pages) = (Vec::new(), Vec::new());
        for (asked, told) in std::iter::once((None, only)).chain(each) {
            let (tracker, page) = self.door.count(space.as_fd(), asked).map_err(NotCounted::Refused)?;
            trackers.push(tracker);
            pages.push(Told { device: told, counts: page.begun(), page });
        }
        Ok((trackers, pages))
    }

    /// Tells what was added since the last time, of processes that `process` knows; others' waits until it does, or until
    /// they are dead.
    pub(super) fn read(&mut self, process: impl Fn(u32) -> Option<Process>, tell: &mut Vec<Seen>) {
        let mut over = Vec::new();
        for (pid, counted) in &mut self.counted {
            let lives = proc::process(*pid) == Some(counted.process);
            if process(*pid) == Some(counted.process) {
                counted.tell(tell);
            }
            // One that lives and is let go of has another program, or its first thread has ended.
            let held = self.held.has(counted.key);
            if !lives || !held || !self.place.is_open(*pid, counted.descriptor) {
                over.push((*pid, counted.key));
            }
        }
        for (pid, key) in over {
            self.held.release(key);
            self.counted.remove(&pid);
            self.unknown(pid);
        }
    }

    fn let_go(&mut self) {
        for (pid, counted) in std::mem::take(&mut self.counted) {
            self.held.release(counted.key);
            self.unknown(pid);
        }
    }

    fn unknown(&mut self, pid: u32) {
        if let Some(known) = &mut self.known {
            // Fails only if it is not there.
            let _ = known.remove(&pid);
        }
    }
}

impl Counted {
    /// With several cards their own pages tell what they did; the one for all tells what the host's processors did.
    fn tell(&mut self, tell: &mut Vec<Seen>) {
        let apart = self.pages.len() > 1;
        for told in &mut self.pages {
            let now = told.page.read();
            let mut paged = now.since(told.counts);
            told.counts = now;
            if apart {
                paged = match told.device {
                    None => Paged { cpu_faults: paged.cpu_faults, ..Paged::default() },
                    Some(_) => Paged { cpu_faults: 0, ..paged },
                };
            }
            if paged != Paged::default() {
                let what = What::Uvm(told.device, paged);
                tell.push(Seen::Process(Observation { process: self.process, what }));
            }
        }
    }
}
