//! Managed memory, summed up by process: there can be millions of events a second, so none is sent.
//!
//! Devices' faults are served by kernel threads: whose they are is known by the VA space, from its beginning on, that
//! the process itself makes. A space that is older than the programs stays unknown, and is counted as that.
//!
//! Where the module's own counters are read instead, the agent holds something of each such process, and must let go of it
//! before the process gives back its memory: it is woken when one of these begins to end.

#![expect(unsafe_code, reason = "helpers of the kernel read its memory")]

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_FORCE_WAKEUP};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use nvshare_common::uvm::{ENDINGS_BYTES, LAYOUT_WORDS, Layout, Losses, SPACES, Step, Usage};

use crate::slots::{self, Word};

/// What the agent found out about the driver, before it attached anything.
#[map]
static UVM_LAYOUT: Array<[u32; LAYOUT_WORDS]> = Array::with_max_entries(1, 0);

/// The events of a VA space, by their address, to the process.
#[map]
static UVM_SPACES: HashMap<u64, u32> = HashMap::with_max_entries(SPACES, 0);

/// The sums of a process. The agent forgets those that are dead.
#[map]
static UVM_USAGE: HashMap<u32, Usage> = HashMap::with_max_entries(SPACES, 0);

/// The processes whose counters the agent holds.
#[map]
static UVM_HELD: HashMap<u32, u32> = HashMap::with_max_entries(SPACES, 0);

/// Those of them that begin to end, or run another program now.
#[map]
static UVM_ENDINGS: RingBuf = RingBuf::with_byte_size(ENDINGS_BYTES, 0);

#[map]
static UVM_LOSSES: Array<Losses> = Array::with_max_entries(1, 0);

/// [`Usage`] while several CPUs add to it.
#[repr(C)]
struct SharedUsage {
    faults: Word,
    to_device: Word,
    to_host: Word,
}

/// [`Losses`] while several CPUs add to it.
#[repr(C)]
struct SharedLosses {
    unknown: Word,
    refused: Word,
    unreadable: Word,
}

const _: () = assert!(size_of::<SharedUsage>() == size_of::<Usage>());
const _: () = assert!(size_of::<SharedLosses>() == size_of::<Losses>());

/// The first thread of a process ends, or it has replaced its program. Without room the agent hears of its death.
pub fn ends_or_changes(tgid: u32) {
    if UVM_HELD.get_ptr(tgid).is_some() {
        let _ = UVM_ENDINGS.output::<u64>(&u64::from(tgid), u64::from(BPF_RB_FORCE_WAKEUP));
    }
}

/// The current process has a new VA space.
pub fn begins(events: u64) {
    if !slots::is_observed() {
        return;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let known = UVM_USAGE.get_ptr(tgid).is_some()
        || UVM_USAGE.insert(tgid, Usage::default(), u64::from(BPF_NOEXIST)).is_ok()
        // Another thread of the process was faster.
        || UVM_USAGE.get_ptr(tgid).is_some();
    // An address whose end nobody saw is taken over.
    if !(known && UVM_SPACES.insert(events, tgid, 0).is_ok()) {
        lose(|losses| &losses.refused);
    }
}

/// Something happened in a VA space.
pub fn happened(events: u64, kind: u32, event: u64) {
    let Some(words) = UVM_LAYOUT.get(0) else { return };
    let layout = Layout::from_words(*words);
    if !layout.counts(kind) {
        return;
    }
    // SAFETY: the value is copied at once; a space that ends meanwhile has no more events.
    let Some(tgid) = (unsafe { UVM_SPACES.get(events) }).copied() else {
        return lose(|losses| &losses.unknown);
    };
    let Some(usage) = UVM_USAGE.get_ptr(tgid) else { return lose(|losses| &losses.unknown) };
    // SAFETY: the map lives as long as any program; the two layouts are the same words, and `Word` may be shared. If the
    // agent has just forgotten the process, its memory is still the map's.
    let usage = unsafe { &*usage.cast::<SharedUsage>() };
    // SAFETY: the helper fails on an address that cannot be read.
    let word = |at: u32| unsafe { bpf_probe_read_kernel((event + u64::from(at)) as *const u32) }.ok();
    // SAFETY: as above.
    let long = |at: u32| unsafe { bpf_probe_read_kernel((event + u64::from(at)) as *const u64) }.ok();
    match layout.step(kind, word, long) {
        Some(Step::Fault) => usage.faults.add(1),
        Some(Step::ToDevice(bytes)) => usage.to_device.add(bytes),
        Some(Step::ToHost(bytes)) => usage.to_host.add(bytes),
        Some(Step::Nothing) => {}
        None => lose(|losses| &losses.unreadable),
    }
}

/// The VA space is gone; what its process did stays until the agent has read it.
pub fn ends(events: u64) {
    // Fails for a space that nobody saw begin.
    let _ = UVM_SPACES.remove(events);
}

fn lose(which: impl Fn(&SharedLosses) -> &Word) {
    if let Some(losses) = UVM_LOSSES.get_ptr(0) {
        // SAFETY: as with the sums: the same words, in a map that lives as long as any program.
        which(unsafe { &*losses.cast::<SharedLosses>() }).add(1);
    }
}
