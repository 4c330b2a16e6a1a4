//! What the driver does to managed memory: by the counters of its own module where these can be had (`tools`), by kprobes in
//! it otherwise (`kprobes`), or not at all, with the reason. Whatever fails here leaves the uprobes alone.

mod kprobes;
mod tools;

use std::time::{Duration, Instant};

use aya::Ebpf;
use nvshare_agent_core::observation::{self, Activity, Observation, Seen, Source, What};
use nvshare_agent_core::process::Process;
use nvshare_common::probe::Call;

use super::options::Options;
use kprobes::Kprobes;
use tools::Tools;

/// The sums are read this often, and when a process died.
const EVERY: Duration = Duration::from_millis(500);

/// Both ways; one is used at a time.
pub(super) struct Uvm {
    /// Or why they cannot be had at all.
    tools: Result<Tools, String>,
    kprobes: Result<Kprobes, String>,
    source: Source,
    why: Option<String>,
    /// The module was not loaded.
    absent: bool,
    looked: bool,
    read_at: Instant,
}

impl Uvm {
    /// Off until the first look. Takes the maps out of the object.
    pub(super) fn new(ebpf: &mut Ebpf, options: &Options) -> Uvm {
        Uvm {
            tools: match &options.tools {
                Some(paths) => Tools::new(ebpf, paths, options.modules.clone()),
                None => Err("its counters are not asked for (--uvm-counters)".to_owned()),
            },
            kprobes: Kprobes::new(ebpf, &options.modules),
            source: Source::None,
            why: None,
            absent: false,
            looked: false,
            read_at: Instant::now(),
        }
    }

    /// Chooses the way that is there now. Each change is logged once.
    pub(super) fn look(&mut self, ebpf: &mut Ebpf) {
        let tools = match &mut self.tools {
            Ok(tools) => tools.look().map_err(|why| why.to_string()),
            Err(why) => Err(why.clone()),
        };
        let (source, why) = match (tools, &mut self.kprobes) {
            (Ok(()), kprobes) => {
                if let Ok(kprobes) = kprobes {
                    kprobes.detach();
                }
                (Source::Tools, None)
            }
            (Err(tools), Ok(kprobes)) => match kprobes.look(ebpf) {
                None => (Source::Kprobes, None),
                Some(kprobes::Why::NoModule) => (Source::None, Some(kprobes::Why::NoModule.to_string())),
                Some(why) => (Source::None, Some(format!("{tools}; {why}"))),
            },
            (Err(tools), Err(kprobes)) => (Source::None, Some(format!("{tools}; {kprobes}"))),
        };
        // Nothing is wrong with a machine without it.
        self.absent = why.as_ref().is_some_and(|why| *why == kprobes::Why::NoModule.to_string());
        let changed = (source, &why) != (self.source, &self.why) || !self.looked;
        if changed {
            match &why {
                None => tracing::info!(source = source.name(), "managed memory is observed"),
                Some(why) if self.absent => tracing::info!(why, "managed memory is not observed"),
                Some(why) => tracing::warn!(why, "managed memory is not observed; the rest is"),
            }
        }
        (self.source, self.why, self.looked) = (source, why, true);
    }

    /// A process that uses the driver, found by a look at all of them.
    pub(super) fn found(&mut self, pid: u32) {
        if let Ok(tools) = &mut self.tools {
            tools.found(pid);
        }
    }

    /// Looks at what is told for processes with managed memory. Says whether there are some and the module was not loaded at the
    /// last look: the first program of a node may have it loaded.
    pub(super) fn seen(&mut self, seen: &[Seen]) -> bool {
        let mut any = false;
        for seen in seen {
            let Seen::Process(Observation { process, what: What::Activity(Activity { counts, .. }) }) = seen
            else {
                continue;
            };
            let by = |counts: &[u64]| counts[Call::AllocManaged as usize];
            if by(&counts.application) > 0 || by(&counts.engine) > 0 {
                any = true;
                if let Ok(tools) = &mut self.tools {
                    tools.allocated(*process);
                }
            }
        }
        any && self.absent
    }

    /// Tells what was added since the last time, of processes that `process` knows; others' waits until it does, or until
    /// they are dead. Does nothing between two times, unless it must be `now`.
    pub(super) fn read(&mut self, now: bool, process: impl Fn(u32) -> Option<Process>, tell: &mut Vec<Seen>) {
        if !(now || self.read_at.elapsed() >= EVERY) {
            return;
        }
        self.read_at = Instant::now();
        if let Ok(tools) = &mut self.tools {
            tools.read(&process, tell);
        }
        if let Ok(kprobes) = &mut self.kprobes {
            kprobes.read(&process, tell);
        }
    }

    /// How the source is.
    pub(super) fn health(&self) -> observation::Uvm {
        let losses = self.kprobes.as_ref().map(Kprobes::losses).unwrap_or_default();
        let (followed, missed) = self.tools.as_ref().map(Tools::figures).unwrap_or_default();
        observation::Uvm {
            observed: self.source != Source::None,
            source: self.source,
            why: self.why.clone(),
            followed,
            unknown: losses.unknown,
            refused: losses.refused + missed,
            unreadable: losses.unreadable,
        }
    }
}
