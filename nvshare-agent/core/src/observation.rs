//! What the uprobes saw, as the observer tells the conductor. Observations may be lost or late: they help to choose and
//! never carry an obligation.

use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::event::Loss;
use nvshare_common::ids::DeviceId;
use nvshare_common::probe::Call;
use serde::{Deserialize, Serialize};

use crate::moment::Moment;
use crate::process::Process;

/// Calls on observed functions since a process began, by [`Call`]: index `call as usize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the application's threads.
    pub application: [u64; Call::COUNT],
    /// By the shim's own threads.
    pub engine: [u64; Call::COUNT],
}

/// A context of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// The primary one of a device, by the application's number for it.
    Primary(u32),
    /// One of its own, by its handle.
    Own(u64),
}

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// How much a process has done so far; sent when it changed, and once more when it ended. A process is first heard
    /// of by this.
    Activity {
        /// Who.
        process: Process,
        /// All its calls so far. Apart, since all others are much smaller.
        counts: Box<Counts>,
        /// The first call of it that was observed: all that are counted came then or later.
        first_call: Moment,
        /// Its application's last observed call.
        last_call: Moment,
        /// Its application's last launch of a kernel or graph.
        last_launch: Moment,
        /// Records about it that were lost so far, by [`Loss`]: if any, what is known of its memory is inexact.
        lost: [u64; Loss::COUNT],
        /// It has been observed since it began, and in full.
        whole: bool,
    },
    /// The application allocated memory ([`Call::Alloc`], [`Call::AllocAsync`] or [`Call::AllocManaged`]).
    Allocated {
        /// Who.
        process: Process,
        /// How.
        call: Call,
        /// What it got.
        range: DeviceRange,
    },
    /// The application freed what it got at this address.
    Freed {
        /// Who.
        process: Process,
        /// The address it got.
        address: DevicePtr,
    },
    /// The application created a physical handle on a device.
    Created {
        /// Who.
        process: Process,
        /// The handle it got.
        handle: u64,
        /// How much memory it is.
        bytes: Bytes,
        /// On which device, by the application's number for it.
        device: u32,
    },
    /// The application got one more reference to a handle.
    Retained {
        /// Who.
        process: Process,
        /// The handle.
        handle: u64,
    },
    /// The application gave back one reference to a handle.
    Released {
        /// Who.
        process: Process,
        /// The handle.
        handle: u64,
    },
    /// A piece of address space got physical memory (under the shim: an extent became resident).
    Mapped {
        /// Who.
        process: Process,
        /// Where.
        range: DeviceRange,
        /// Which.
        handle: u64,
    },
    /// A piece of address space lost its physical memory.
    Unmapped {
        /// Who.
        process: Process,
        /// Where.
        range: DeviceRange,
    },
    /// A sampled launch: its first parameters that may be device pointers.
    Launched {
        /// Who.
        process: Process,
        /// When.
        at: Moment,
        /// The parameters, as they are: matched against known ranges by the ledger.
        parameters: Vec<u64>,
    },
    /// The application asked for managed memory to be moved.
    Prefetched {
        /// Who.
        process: Process,
        /// What.
        range: DeviceRange,
    },
    /// The application gave advice on managed memory.
    Advised {
        /// Who.
        process: Process,
        /// On what.
        range: DeviceRange,
        /// `CUmem_advise`.
        advice: u64,
    },
    /// Faults and migrations of managed memory by the kernel's own count, since the last such observation.
    Uvm {
        /// Who.
        process: Process,
        /// Of which device; `None`: of all, or of the host's processors.
        device: Option<DeviceId>,
        /// What was added.
        paged: Paged,
    },
    /// The process made a context, or took a reference to a device's primary one.
    ContextMade {
        /// Who.
        process: Process,
        /// Which.
        context: Context,
    },
    /// The process ended a context, or gave back a reference to a device's primary one.
    ContextEnded {
        /// Who.
        process: Process,
        /// Which.
        context: Context,
    },
    /// A device's primary context lost everything in it; its references stay.
    ContextReset {
        /// Who.
        process: Process,
        /// The device, by the application's number for it.
        device: u32,
    },
    /// The process replaced its program: what was known of its memory is void.
    Exec {
        /// Who.
        process: Process,
    },
    /// The process ended; its last [`Observation::Activity`] came before.
    Exited {
        /// Who.
        process: Process,
    },
    /// The observer itself; replaces what it said before.
    Observer(Health),
}

/// How the observer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The programs are loaded in the kernel.
    pub loaded: bool,
    /// Why not, or what else is missing, with the remedy; empty when all is well.
    pub problems: Vec<String>,
    /// Every libcuda file that was found.
    pub attachments: Vec<Attachment>,
    /// Records read from the ring buffer.
    pub records: u64,
    /// Records that were lost, of all processes, known and unknown.
    pub lost: u64,
    /// The same by [`Loss`].
    #[serde(default)]
    pub losses: [u64; Loss::COUNT],
    /// Calls by processes for which there was no slot.
    pub unattributed: u64,
    /// The first look at all processes is done.
    pub scanned: bool,
    /// Managed memory.
    #[serde(default)]
    pub uvm: Uvm,
}

/// What the driver did to managed memory on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paged {
    /// Faults taken on devices.
    pub faults: u64,
    /// Faults taken on the host.
    pub cpu_faults: u64,
    /// Bytes moved to devices.
    pub to_device: Bytes,
    /// Bytes moved to the host.
    pub to_host: Bytes,
}

impl Paged {
    /// Adds what came later.
    pub fn add(&mut self, more: Paged) {
        self.faults = self.faults.saturating_add(more.faults);
        self.cpu_faults = self.cpu_faults.saturating_add(more.cpu_faults);
        self.to_device += more.to_device;
        self.to_host += more.to_host;
    }
}

/// Who tells of managed memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody.
    #[default]
    None,
    /// The module's own counters, by `/dev/nvidia-uvm-tools`.
    Tools,
    /// Kprobes in the module.
    Kprobes,
}

impl Source {
    /// Those that tell something.
    pub const ALL: [Source; 2] = [Source::Tools, Source::Kprobes];

    /// Its name, for people and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Source::None => "none",
            Source::Tools => "tools",
            Source::Kprobes => "kprobes",
        }
    }
}

/// Whether the kernel tells of managed memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uvm {
    /// It does.
    pub observed: bool,
    /// By which means.
    #[serde(default)]
    pub source: Source,
    /// Why not; nothing also while the eBPF programs are not loaded at all.
    pub why: Option<String>,
    /// How many processes have counters of their own now.
    #[serde(default)]
    pub followed: u64,
    /// Faults and migrations of VA spaces older than the agent.
    pub unknown: u64,
    /// VA spaces and processes for which there was no room, or whose counters could not be had.
    pub refused: u64,
    /// Events that made no sense: the driver is not as it is thought to be.
    pub unreadable: u64,
}

/// One libcuda file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// As it was found; for people.
    pub path: String,
    /// How many functions are observed.
    pub functions: u32,
    /// Functions of the table that the file has and that are not observed, with the reason.
    pub refused: Vec<String>,
    /// How many of the observed functions have a probe that the kernel must single-step: 20 times slower than others.
    #[serde(default)]
    pub stepped: u32,
    /// `uprobe_multi` or `single`.
    pub means: String,
    /// Why nothing is attached, if so.
    pub problem: Option<String>,
    /// A line for each observed function: its name, where in the file the probe is, what stands there, how often it was hit,
    /// and what a hit costs in the eBPF programs on the average (`-`: the kernel does not measure that).
    #[serde(default)]
    pub places: String,
}
