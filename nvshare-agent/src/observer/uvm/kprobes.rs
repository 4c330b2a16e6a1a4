//! Managed memory, by kprobes in NVIDIA's module: attached where it is loaded and known, off elsewhere with the reason.

mod driver;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::KProbe;
use aya::programs::kprobe::KProbeLink;
use nvshare_agent_core::observation::{Observation, Paged, Seen, What};
use nvshare_agent_core::process::Process;
use nvshare_common::bytes::Bytes;
use nvshare_common::uvm::{LAYOUT_WORDS, Losses, Usage};

use crate::observer::load_error::chain;
use crate::proc;
use driver::Driver;

pub(super) use driver::Why;

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
pub(super) struct Kprobes {
    modules: PathBuf,
    maps: Maps,
    loaded: bool,
    attached: Option<(Driver, Vec<KProbeLink>)>,
    why: Option<Why>,
    told: std::collections::HashMap<u32, Usage>,
    losses: Losses,
}

impl Kprobes {
    /// Off until the first look. Takes the maps out of the object; says what is wrong with them.
    pub(super) fn new(ebpf: &mut Ebpf, modules: &Path) -> Result<Kprobes, String> {
        Ok(Kprobes {
            modules: modules.to_owned(),
            maps: Maps::take(ebpf)?,
            loaded: false,
            attached: None,
            why: None,
            told: std::collections::HashMap::new(),
            losses: Losses::default(),
        })
    }

    /// Attaches where that is possible now, and lets go of a module that was unloaded. Says why not.
    pub(super) fn look(&mut self, ebpf: &mut Ebpf) -> Option<&Why> {
        let found = driver::look(&self.modules);
        if let (Some((attached, _)), Ok(driver)) = (&self.attached, &found)
            && attached == driver
        {
            return None;
        }
        self.attached = None;
        self.why = found.and_then(|driver| self.attach(ebpf, driver)).err();
        self.why.as_ref()
    }

    /// Lets go of the module: its counters are read in another way.
    pub(super) fn detach(&mut self) {
        self.attached = None;
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
    /// they are dead.
    pub(super) fn read(&mut self, process: impl Fn(u32) -> Option<Process>, tell: &mut Vec<Seen>) {
        if self.attached.is_some() {
            self.maps.read(&mut self.told, process, tell);
            self.losses = self.maps.losses();
        }
    }

    /// Events and insertions that came to nothing.
    pub(super) fn losses(&self) -> Losses {
        self.losses
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

    /// See [`Kprobes::read`]. A process that is neither known nor alive is forgotten.
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
                let paged = Paged {
                    faults: more.faults,
                    cpu_faults: 0,
                    to_device: Bytes(more.to_device),
                    to_host: Bytes(more.to_host),
                };
                tell.push(Seen::Process(Observation { process, what: What::Uvm(None, paged) }));
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
