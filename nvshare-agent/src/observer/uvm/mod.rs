//! Managed memory, by kprobes in NVIDIA's module: attached where it is loaded and known, off elsewhere with the reason.
//! Whatever fails here leaves the uprobes alone.

mod driver;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::KProbe;
use aya::programs::kprobe::KProbeLink;
use nvshare_agent_core::observation::{self, Observation, Seen, What};
use nvshare_agent_core::process::Process;
use nvshare_common::bytes::Bytes;
use nvshare_common::uvm::{LAYOUT_WORDS, Losses, Usage};

use super::load_error::chain;
use driver::{Driver, Why};

use crate::proc;

/// The sums are read this often, and when a process died.
const EVERY: Duration = Duration::from_millis(500);

/// The programs, with the functions of the module. The events come last, when whose they are can be known.
const PROBES: [(&str, &str); 3] = [
    ("uvm_space_begins", "uvm_perf_init_va_space_events"),
    ("uvm_space_ends", "uvm_perf_destroy_va_space_events"),
    ("uvm_event", "uvm_perf_event_notify"),
];

/// Perf's kprobes: attached without tracefs.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// The programs' maps.
struct Maps {
    layout: Array<MapData, [u32; LAYOUT_WORDS]>,
    usage: HashMap<MapData, u32, [u64; 3]>,
    losses: Array<MapData, [u64; 3]>,
}

/// The source.
pub(super) struct Uvm {
    modules: PathBuf,
    maps: Maps,
    loaded: bool,
    attached: Option<(Driver, Vec<KProbeLink>)>,
    why: Option<Why>,
    told: std::collections::HashMap<u32, Usage>,
    losses: Losses,
    read_at: Instant,
}

impl Uvm {
    /// Off until the first look. Takes the maps out of the object; says what is wrong with them.
    pub(super) fn new(ebpf: &mut Ebpf, modules: &Path) -> Result<Uvm, String> {
        Ok(Uvm {
            modules: modules.to_owned(),
            maps: Maps::take(ebpf)?,
            loaded: false,
            attached: None,
            why: None,
            told: std::collections::HashMap::new(),
            losses: Losses::default(),
            read_at: Instant::now(),
        })
    }

    /// Attaches where that is possible now, and lets go of a module that was unloaded. Each reason is logged once.
    pub(super) fn look(&mut self, ebpf: &mut Ebpf) {
        let found = driver::look(&self.modules);
        if let (Some((attached, _)), Ok(driver)) = (&self.attached, &found)
            && attached == driver
        {
            return;
        }
        self.attached = None;
        let why = found.and_then(|driver| self.attach(ebpf, driver)).err();
        if why != self.why || why.is_none() {
            match &why {
                None => tracing::info!("managed memory is observed, by kprobes in nvidia_uvm"),
                Some(why @ Why::NoModule) => tracing::info!(%why, "managed memory is not observed"),
                Some(why) => tracing::warn!(%why, "managed memory is not observed; the rest is"),
            }
        }
        self.why = why;
    }

    fn attach(&mut self, ebpf: &mut Ebpf, driver: Driver) -> Result<(), Why> {
        if !self.loaded {
            // What the kernel refused once it refuses again.
            if let Some(why @ Why::Load(..)) = &self.why {
                return Err(why.clone());
            }
            for (name, _) in PROBES {
                let loaded = program(ebpf, name)?.load();
                loaded.map_err(|error| Why::Load(name, chain(&error)))?;
            }
            self.loaded = true;
        }
        if !Path::new(KPROBES).exists() {
            return Err(Why::NoKprobes);
        }
        let set = self.maps.layout.set(0, driver.layout.to_words(), 0);
        set.map_err(|error| Why::Load("UVM_LAYOUT", chain(&error)))?;
        let mut links = Vec::new();
        for (name, function) in PROBES {
            let program = program(ebpf, name)?;
            let link = program.attach(function, 0).and_then(|id| program.take_link(id));
            links.push(link.map_err(|error| Why::Attach(function, chain(&error)))?);
        }
        self.attached = Some((driver, links));
        Ok(())
    }

    /// Tells what was added since the last time, of processes that `process` knows; others' wait until it does, or until
    /// they are dead. Does nothing between two times, unless it must be `now`.
    pub(super) fn read(&mut self, now: bool, process: impl Fn(u32) -> Option<Process>, tell: &mut Vec<Seen>) {
        if self.attached.is_none() || !(now || self.read_at.elapsed() >= EVERY) {
            return;
        }
        self.read_at = Instant::now();
        self.maps.read(&mut self.told, process, tell);
        self.losses = self.maps.losses();
    }

    /// How the source is.
    pub(super) fn health(&self) -> observation::Uvm {
        observation::Uvm {
            observed: self.attached.is_some(),
            why: self.why.as_ref().map(ToString::to_string),
            unknown: self.losses.unknown,
            refused: self.losses.refused,
            unreadable: self.losses.unreadable,
        }
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Maps, String> {
        let mut take =
            |name: &str| ebpf.take_map(name).ok_or_else(|| format!("the eBPF programs have no map `{name}`"));
        Ok(Maps {
            layout: Array::try_from(take("UVM_LAYOUT")?).map_err(|error| chain(&error))?,
            usage: HashMap::try_from(take("UVM_USAGE")?).map_err(|error| chain(&error))?,
            losses: Array::try_from(take("UVM_LOSSES")?).map_err(|error| chain(&error))?,
        })
    }

    /// See [`Uvm::read`]. A process that is neither known nor alive is forgotten.
    fn read(
        &mut self,
        told: &mut std::collections::HashMap<u32, Usage>,
        process: impl Fn(u32) -> Option<Process>,
        tell: &mut Vec<Seen>,
    ) {
        let mut dead = Vec::new();
        for (pid, [faults, to_device, to_host]) in self.usage.iter().filter_map(Result::ok) {
            let usage = Usage { faults, to_device, to_host };
            let Some(process) = process(pid) else {
                if proc::process(pid).is_none() {
                    dead.push(pid);
                }
                continue;
            };
            let more = usage.since(told.insert(pid, usage).unwrap_or_default());
            if more != Usage::default() {
                let (to_device, to_host) = (Bytes(more.to_device), Bytes(more.to_host));
                let what = What::Uvm { faults: more.faults, to_device, to_host };
                tell.push(Seen::Process(Observation { process, what }));
            }
        }
        for pid in dead {
            told.remove(&pid);
            // Fails only if it is not there.
            let _ = self.usage.remove(&pid);
        }
    }

    fn losses(&self) -> Losses {
        let [unknown, refused, unreadable] = self.losses.get(&0, 0).unwrap_or_default();
        Losses { unknown, refused, unreadable }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut KProbe, Why> {
    let program = ebpf.program_mut(name).and_then(|program| program.try_into().ok());
    program.ok_or_else(|| Why::Load(name, "it is not in the object".to_owned()))
}
