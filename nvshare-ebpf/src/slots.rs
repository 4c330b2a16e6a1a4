//! The slots: one per process, in an array that the agent maps and reads without system calls.
//!
//! Free slots wait in a queue, filled by the agent. A process takes one at its first call; the agent gives it back
//! after the process died and its counts were read for the last time.

use core::cell::UnsafeCell;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Queue};
use aya_log_ebpf::warn;
use nvshare_common::event::{SLOTS as COUNT, Slot};

#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(COUNT as u32, BPF_F_MMAPABLE);

/// Slots nobody uses.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(COUNT as u32, 0);

/// Process to slot.
#[map]
static OWNERS: HashMap<u32, u32> = HashMap::with_max_entries(COUNT as u32, 0);

/// Charged with what cannot be charged to a process.
pub const NOBODY: u32 = 0;

/// The slot of a process that has one.
pub fn find(tgid: u32) -> Option<u32> {
    // SAFETY: the value is copied at once; a slot that is given back meanwhile belongs to a process that is dead.
    unsafe { OWNERS.get(tgid) }.copied()
}

/// The slot of a process, a free one at its first call.
pub fn find_or_claim(ctx: &impl EbpfContext, tgid: u32) -> u32 {
    match find(tgid) {
        Some(slot) => slot,
        None => claim(ctx, tgid),
    }
}

#[inline(never)]
fn claim_free(tgid: u32) -> u32 {
    let Ok(Some(slot)) = FREE.pop() else { return NOBODY };
    if OWNERS.insert(tgid, slot, u64::from(BPF_NOEXIST)).is_err() {
        // Another thread of the process was faster, or the table cannot take it now.
        let _ = FREE.push(slot, 0);
        return find(tgid).unwrap_or(NOBODY);
    }
    if let Some(place) = get(slot) {
        // SAFETY: helper without arguments.
        place.first.store(unsafe { bpf_ktime_get_ns() });
        place.tgid.store(u64::from(tgid));
    }
    if let Some(nobody) = get(NOBODY) {
        nobody.tgid.add(1);
    }
    slot
}

fn claim(ctx: &impl EbpfContext, tgid: u32) -> u32 {
    let slot = claim_free(tgid);
    if slot == NOBODY
        && let Some(nobody) = get(NOBODY)
        && nobody.ended.load() == 0
    {
        // Once: the agent clears the mark when it has freed slots.
        nobody.ended.store(1);
        warn!(ctx, "no free slot for process {}: its calls are counted as nobody's", tgid);
    }
    slot
}

/// A word that several CPUs and the agent share. Rust has neither atomic additions nor (selectable by LLVM without a
/// newer instruction set) atomic loads for this target; aligned words are read and written whole by nature.
#[repr(transparent)]
pub struct Word(UnsafeCell<u64>);

// SAFETY: all access is by single instructions on an aligned word, that the compiler may not split or repeat.
unsafe impl Sync for Word {}

impl Word {
    /// Its value now.
    pub fn load(&self) -> u64 {
        // SAFETY: a valid, aligned word.
        unsafe { self.0.get().read_volatile() }
    }

    /// Sets it; the last one who does, wins.
    pub fn store(&self, value: u64) {
        // SAFETY: a valid, aligned word.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Adds, whoever else adds at the same time: programs can be preempted, and a process has many threads.
    pub fn add(&self, more: u64) {
        // SAFETY: adds to one valid word and touches no register.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({counter} + 0) += {more}",
                counter = in(reg) self.0.get(),
                more = in(reg) more,
                options(nostack),
            );
        }
    }
}

/// [`Slot`], as it is while several CPUs write to it.
#[repr(C)]
pub struct Shared {
    pub tgid: Word,
    pub first: Word,
    pub last: Word,
    pub last_launch: Word,
    pub lost: Word,
    pub ended: Word,
    pub application: [Word; nvshare_common::probe::Call::COUNT],
    pub engine: [Word; nvshare_common::probe::Call::COUNT],
    spare: [Word; 4],
}

const _: () = assert!(size_of::<Shared>() == size_of::<Slot>());

/// The slot's memory.
pub fn get(slot: u32) -> Option<&'static Shared> {
    let place = SLOTS.get_ptr(slot)?;
    // SAFETY: the array lives as long as any program; the two layouts are the same words, and
    // `Word` may be shared.
    Some(unsafe { &*place.cast::<Shared>() })
}

/// Notes a record that was lost.
pub fn lost(slot: u32) {
    if let Some(place) = get(slot) {
        place.lost.add(1);
    }
}

/// Cuts the process off from its slot: it goes on under a new one.
pub fn abandon(tgid: u32) -> Option<u32> {
    let slot = find(tgid)?;
    OWNERS.remove(tgid).ok()?;
    if let Some(place) = get(slot) {
        // SAFETY: helper without arguments.
        place.ended.store(unsafe { bpf_ktime_get_ns() });
    }
    Some(slot)
}
