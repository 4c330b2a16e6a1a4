//! The slots: one per process, in an array that the agent maps and reads without system calls.
//!
//! Free slots wait in a queue, filled by the agent. A process takes one at its first call; the agent gives it back
//! after the process died and its counts were read for the last time. What its threads write with every call they write
//! into lanes: counted in one word by all, a call costs each of them a cache line that another CPU has. What a group of processes (a container's) has is
//! counted behind the slots, so that none takes them all.

#![expect(unsafe_code, reason = "words of the maps are shared with the agent")]

use core::cell::UnsafeCell;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Queue};
use aya_ebpf::{EbpfContext, Global};
use aya_log_ebpf::warn;
use nvshare_common::event::{
    FREQUENT, GROUPS, LANES as OF_EACH, Lane, Loss, RECORDS_OF_GROUP, RECORDS_OF_PROCESS, SLOTS as COUNT,
    SLOTS_OF_GROUP, Slot, WINDOW_SHIFT, lane as place_of_lane,
};

#[map]
static SLOTS: Array<Slot> = Array::with_max_entries((COUNT + GROUPS) as u32, BPF_F_MMAPABLE);

#[map]
static LANES: Array<Lane> = Array::with_max_entries((COUNT * OF_EACH) as u32, BPF_F_MMAPABLE);

/// Slots nobody uses.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(COUNT as u32, 0);

/// Process to slot.
#[map]
static OWNERS: HashMap<u32, u32> = HashMap::with_max_entries(COUNT as u32, 0);

/// The cgroup whose processes are observed, with those below it; 0: everybody.
#[unsafe(no_mangle)]
static PART: Global<u64> = Global::new(0);
/// It lies less deep.
const DEEPEST: i32 = 16;

/// Charged with what cannot be charged to a process.
pub const NOBODY: u32 = 0;

/// The slot of a process that has one.
pub fn find(tgid: u32) -> Option<u32> {
    // SAFETY: the value is copied at once; a slot that is given back meanwhile belongs to a process that is dead.
    unsafe { OWNERS.get(tgid) }.copied()
}

/// The slot of the current process, a free one at its first call; none where it is not observed.
pub fn find_or_claim(ctx: &impl EbpfContext, tgid: u32) -> Option<u32> {
    match find(tgid) {
        Some(slot) => Some(slot),
        None if is_observed() => Some(claim(ctx, tgid)),
        None => None,
    }
}

/// Whether the current process belongs to the part of the machine that is observed.
pub fn is_observed() -> bool {
    let part = PART.load();
    // SAFETY: helper with a plain number.
    part == 0 || (0..DEEPEST).any(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) } == part)
}

/// Pods and services stand at this depth below the root; what they make below belongs to them.
const LEVEL: i32 = 3;
/// The cgroup of everybody where they are of the first version: nobody's quota then.
const ROOT: u64 = 1;

/// The slot of the current process's group; 0 if it has none.
fn group() -> u32 {
    // SAFETY: helper with a plain number.
    let mut id = unsafe { bpf_get_current_ancestor_cgroup_id(LEVEL) };
    if id == 0 {
        // SAFETY: helper without arguments.
        id = unsafe { bpf_get_current_cgroup_id() };
    }
    if id <= ROOT {
        return NOBODY;
    }
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    COUNT as u32 + (mixed % GROUPS as u64) as u32
}

#[inline(never)]
fn claim_free(tgid: u32) -> u32 {
    let group = group();
    if let Some(place) = get(group)
        && group != NOBODY
    {
        place.first.add(1);
        if place.first.load() > SLOTS_OF_GROUP {
            place.first.subtract(1);
            return NOBODY;
        }
    }
    let slot = claim_for(tgid, group);
    if slot == NOBODY
        && let Some(place) = get(group)
        && group != NOBODY
    {
        place.first.subtract(1);
    }
    if slot == NOBODY { find(tgid).unwrap_or(NOBODY) } else { slot }
}

fn claim_for(tgid: u32, group: u32) -> u32 {
    let Ok(Some(slot)) = FREE.pop() else { return NOBODY };
    if OWNERS.insert(tgid, slot, u64::from(BPF_NOEXIST)).is_err() {
        // Another thread of the process was faster, or the table cannot take it now.
        let _ = FREE.push(slot, 0);
        return NOBODY;
    }
    if let Some(place) = get(slot) {
        // SAFETY: helper without arguments.
        place.first.store(unsafe { bpf_ktime_get_ns() });
        place.group.store(u64::from(group));
        place.tgid.store(u64::from(tgid));
    }
    if let Some(nobody) = get(NOBODY) {
        nobody.tgid.add(1);
    }
    slot
}

/// Calls `wake` if the agent sleeps: it does not then.
pub fn if_asleep(wake: impl FnOnce()) {
    if let Some(nobody) = get(NOBODY)
        && nobody.first.load() != 0
    {
        nobody.first.store(0);
        wake();
    }
}

/// Whether the process, and its group, may write one more record now.
pub fn admits(slot: &Shared, time: u64) -> bool {
    let window = time >> WINDOW_SHIFT;
    if !slot.admits(window, RECORDS_OF_PROCESS) {
        return false;
    }
    let group = slot.group.load() as u32;
    match get(group) {
        Some(place) if group != NOBODY => place.admits(window, RECORDS_OF_GROUP),
        _ => true,
    }
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
        self.change(more);
    }

    /// Takes away, whoever else adds at the same time.
    pub fn subtract(&self, less: u64) {
        self.change(less.wrapping_neg());
    }

    fn change(&self, more: u64) {
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
    pub ended: Word,
    pub group: Word,
    window: Word,
    taken: Word,
    used: [UnsafeCell<u8>; OF_EACH],
    pub lost: [Word; Loss::COUNT],
    pub application: [Word; nvshare_common::probe::Call::COUNT],
    pub engine: [Word; nvshare_common::probe::Call::COUNT],
    spare: [Word; 4],
}

// SAFETY: words as above, and bytes that are only ever set to the same value.
unsafe impl Sync for Shared {}

impl Shared {
    /// This thread's lane holds something from now on.
    pub fn uses_lane(&self, thread: u32) {
        // SAFETY: a valid byte; programs only store to it, and always this.
        unsafe { self.used[thread as usize % OF_EACH].get().write_volatile(1) }
    }

    /// One more of at most so many in this window. Two threads that both find it new may admit a few more.
    fn admits(&self, window: u64, most: u64) -> bool {
        if self.window.load() != window {
            self.window.store(window);
            self.taken.store(0);
        }
        self.taken.add(1);
        self.taken.load() <= most
    }
}

const _: () = assert!(size_of::<Shared>() == size_of::<Slot>());

/// The slot's memory.
pub fn get(slot: u32) -> Option<&'static Shared> {
    let place = SLOTS.get_ptr(slot)?;
    // SAFETY: the array lives as long as any program; the two layouts are the same words, and
    // `Word` may be shared.
    Some(unsafe { &*place.cast::<Shared>() })
}

/// [`Lane`], as it is while several CPUs write to it.
#[repr(C)]
pub struct SharedLane {
    pub stamp: Word,
    pub last: Word,
    pub last_launch: Word,
    pub calls: [Word; FREQUENT.len()],
}

const _: () = assert!(size_of::<SharedLane>() == size_of::<Lane>());

/// The lane of a process's thread.
pub fn lane(slot: u32, thread: u32) -> Option<&'static SharedLane> {
    let place = LANES.get_ptr(place_of_lane(slot, thread))?;
    // SAFETY: as above.
    Some(unsafe { &*place.cast::<SharedLane>() })
}

/// Notes a record that was lost.
pub fn lost(slot: u32, how: Loss) {
    if let Some(place) = get(slot) {
        place.lost[how as usize].add(1);
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
