//! What the uprobes saw, as the observer tells the conductor. Observations may be lost or late: they help to choose and
//! never carry an obligation.

use std::sync::Arc;

use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::event::Loss;
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

/// What the observer tells, one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Something about a process.
    Process(Observation),
    /// How the observer itself is; replaces what it said before.
    Observer(ObserverState),
}

/// One thing that was seen of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The process, as it was when that was seen.
    pub process: Process,
    /// What it did, or what became of it.
    pub what: What,
}

/// What a process was seen to do. Devices are by the application's numbers for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// How much it has done so far; sent when that changed, and once more when it ended.
    Activity(Activity),
    /// The application allocated memory ([`Call::Alloc`], [`Call::AllocAsync`] or [`Call::AllocManaged`]).
    Allocated(Call, DeviceRange),
    /// The application freed what it got at this address.
    Freed(DevicePtr),
    /// The application created a physical handle on a device.
    Created {
        /// By which the driver knows it.
        handle: u64,
        /// How much memory it is.
        bytes: Bytes,
        /// On which device the memory is.
        device: u32,
    },
    /// The application got one more reference to this handle.
    Retained(u64),
    /// The application gave back one reference to this handle.
    Released(u64),
    /// A piece of address space got the physical memory of a handle (under the shim: an extent became resident).
    Mapped(DeviceRange, u64),
    /// A piece of address space lost its physical memory.
    Unmapped(DeviceRange),
    /// A sampled launch.
    Launched {
        /// When it was seen.
        at: Moment,
        /// Its first parameters that may be device pointers, as they are: matched against known ranges by the ledger.
        parameters: Vec<u64>,
    },
    /// The application asked for managed memory to be moved.
    Prefetched(DeviceRange),
    /// The application gave advice on managed memory: a `CUmem_advise`.
    Advised(DeviceRange, u64),
    /// Faults and migrations of managed memory by the kernel's own count, since the last such observation.
    Uvm {
        /// Faults taken on the device.
        faults: u64,
        /// Bytes moved to the device.
        to_device: Bytes,
        /// Bytes moved to the host.
        to_host: Bytes,
    },
    /// It made a context, or took a reference to a device's primary one.
    ContextMade(Context),
    /// It ended a context, or gave back a reference to a device's primary one.
    ContextEnded(Context),
    /// The primary context of this device lost everything in it; its references stay.
    ContextReset(u32),
    /// It replaced its program: what was known of its memory is void.
    Exec,
    /// It ended; its last [`What::Activity`] came before.
    Exited,
}

/// Who a process is, for people and for finding its pod; read once, when it was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The name of its program; empty if it has none, or was gone already.
    pub name: String,
    /// The path of its cgroup.
    pub cgroup: String,
}

/// How much a process has done since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Who it is: said each time, so that whoever had no room for it before learns it then.
    pub who: Arc<Identity>,
    /// All its calls. Apart, since all others are much smaller.
    pub counts: Box<Counts>,
    /// The first call of it that was observed: all that are counted came then or later.
    pub first_call: Moment,
    /// Its application's last observed call.
    pub last_call: Moment,
    /// Its application's last launch of a kernel or graph.
    pub last_launch: Moment,
    /// Records about it that were lost so far, by [`Loss`]: if any, what is known of its memory is inexact.
    pub lost: [u64; Loss::COUNT],
    /// It has been observed since it began, and in full.
    pub whole: bool,
}

/// How the observer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObserverState {
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

/// Whether the kernel tells of managed memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uvm {
    /// It does.
    pub observed: bool,
    /// Why not; nothing also while the eBPF programs are not loaded at all.
    pub why: Option<String>,
    /// Faults and migrations of VA spaces older than the agent.
    pub unknown: u64,
    /// VA spaces and processes for which there was no room.
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
