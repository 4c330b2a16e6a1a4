//! Calls: counted at entry; described by a record, at entry or, where the result is needed, at return.

#![expect(unsafe_code, reason = "helpers of the kernel read the program's memory")]

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{
    bpf_get_attach_cookie, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_jiffies64, bpf_ktime_get_ns,
    bpf_probe_read_user, bpf_probe_read_user_buf,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use aya_ebpf::{EbpfContext, Global};
use nvshare_common::event::{
    Cookie, FREQUENT, Kind, Loss, RING_BYTES, Record, SAMPLED_PARAMETERS, SITES, Shape,
};
use nvshare_common::probe::{Call, ENGINE_THREAD_PREFIX};

use crate::slots::{self, Shared, SharedLane, Word};

/// One launch in this many, by chance, is sampled with its parameters; 0: none.
#[unsafe(no_mangle)]
static SAMPLE_EVERY: Global<u32> = Global::new(64);

#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// The reader is woken when this much waits; below, it comes by itself on its tick. A wakeup costs 1.4 us, a record
/// without one 25 ns.
const WAKE_AT: u64 = RING_BYTES as u64 / 8;

/// What a followed call had at its entry.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entered {
    cookie: u64,
    flags_slot: u64,
    arguments: [u64; 4],
}

/// One call in flight: calls can be nested, and each has its own place on its thread's stack.
#[repr(C)]
#[derive(Clone, Copy)]
struct InFlight {
    thread: u64,
    stack: u64,
}

/// Followed calls. Those that never return (their threads were killed inside) make room for new ones.
#[map]
static FOLLOWED: LruHashMap<InFlight, Entered> = LruHashMap::with_max_entries(16 * 1024, 0);

/// Hits by place. Each CPU has its own: a launch is counted by all of them at the same time.
#[map]
static HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SITES as u32, 0);

const LAUNCH: usize = Call::Launch as usize;
const GRAPH_LAUNCH: usize = Call::GraphLaunch as usize;
const ALLOC_MANAGED: usize = Call::AllocManaged as usize;

pub fn entered(ctx: &ProbeContext) {
    // SAFETY: the context is the one this program was called with.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let call = cookie.call();
    if call >= Call::COUNT {
        return;
    }
    if cookie.site() != 0
        && let Some(hits) = HITS.get_ptr_mut(cookie.site())
    {
        // SAFETY: a word of the map, which lives as long as any program; added to as a whole, since programs can be preempted.
        unsafe { &*hits.cast::<Word>() }.add(1);
    }
    let thread = bpf_get_current_pid_tgid();
    let Some(index) = slots::find_or_claim(ctx, (thread >> 32) as u32) else { return };
    let Some(slot) = slots::get(index) else { return };

    let Some(lane) = slots::lane(index, thread as u32) else { return };

    let arguments = arguments(ctx);
    let engine = !met(slot, lane, thread as u32);
    if engine {
        slot.engine[call].add(1);
    } else if let Some(counter) = frequent(lane, call) {
        let before = counter.load();
        counter.add(1);
        if call == LAUNCH || call == GRAPH_LAUNCH {
            lane.last_launch.store(lane.last.load());
        }
        if call == LAUNCH && chosen(before ^ thread << 40) {
            sample(ctx, cookie, arguments, index, thread);
        }
    } else {
        slot.application[call].add(1);
        if call == ALLOC_MANAGED && slot.application[call].load() == 1 {
            // Before it is used: whoever counts its faults should not miss the first.
            wake_agent(index);
        }
    }
    slots::if_asleep(|| wake_agent(index));
    if cookie.shape() == Shape::Counted as u64 || call == LAUNCH {
        return;
    }
    let mut flags = if engine { Record::ENGINE } else { 0 } | cookie.manner() << 24;
    if cookie.located() {
        flags |= Record::LOCATED;
    }
    let entered = Entered { cookie: cookie.0, flags_slot: flags | u64::from(index) << 32, arguments };
    if cookie.followed() {
        let place = InFlight { thread, stack: stack(ctx.regs) };
        if FOLLOWED.insert(place, entered, 0).is_err() {
            slot.lost[Loss::Unmatched as usize].add(1);
        }
    } else {
        if cookie.wanted() {
            slot.lost[Loss::Unfollowed as usize].add(1);
        }
        describe(thread, &entered, NOT_FOLLOWED);
    }
}

pub fn returned(ctx: &RetProbeContext) {
    let thread = bpf_get_current_pid_tgid();
    let place = InFlight { thread, stack: stack(ctx.regs).wrapping_sub(RETURN_ADDRESS) };
    // SAFETY: only this thread writes or removes the entries of this thread.
    let Some(entered) = (unsafe { FOLLOWED.get(place) }).copied() else {
        // The call began before its function was observed, or made room for others.
        if let Some(slot) = slots::find((thread >> 32) as u32).and_then(slots::get) {
            slot.lost[Loss::Unmatched as usize].add(1);
        }
        return;
    };
    let _ = FOLLOWED.remove(place);
    describe(thread, &entered, u64::from(ctx.ret::<u32>()));
}

/// No result is known. (An `Option` would pass an uninitialised register, which the verifier refuses.)
const NOT_FOLLOWED: u64 = u64::MAX;

fn describe(thread: u64, entered: &Entered, result: u64) {
    let cookie = Cookie(entered.cookie);
    let index = (entered.flags_slot >> 32) as u32;
    let time = now();
    let Some(slot) = slots::get(index) else { return };
    if !slots::admits(slot, time) {
        slot.lost[Loss::Throttled as usize].add(1);
        return;
    }
    let mut flags = entered.flags_slot & 0xffff_ffff;
    let [first, second, third, fourth] = entered.arguments;
    let (mut address, mut bytes, mut detail, mut further) = (0, 0, 0, 0);
    let done = result == 0;
    if result != NOT_FOLLOWED {
        flags |= Record::RETURNED;
    }
    let shape = cookie.shape();
    if shape == Shape::Out as u64 || shape == Shape::OutProperties as u64 {
        bytes = second;
        if done {
            address = read_user(first);
        }
        if shape == Shape::OutProperties as u64 {
            // `CUmemAllocationProp`: type and handle types, then the location.
            detail = read_user(third.wrapping_add(8));
        }
    } else if shape == Shape::OutPitch as u64 {
        bytes = third.wrapping_mul(fourth);
        if done {
            address = read_user(first);
            bytes = read_user(second).wrapping_mul(fourth);
        }
    } else if shape == Shape::OutRest as u64 {
        (bytes, detail, further) = (second, third, fourth);
        if done {
            address = read_user(first);
        }
    } else if shape == Shape::Address as u64 {
        address = first;
    } else {
        (address, bytes, detail, further) = (first, second, third, fourth);
    }
    let record = Record {
        head: Record::head(Kind::Call, cookie.call(), flags),
        tgid_tid: thread,
        time,
        slot: u64::from(index),
        result: if result == NOT_FOLLOWED { 0 } else { result },
        address,
        bytes,
        detail,
        further,
        parameters: [0; SAMPLED_PARAMETERS],
    };
    emit_head(index, &record, wake());
}

/// No page is smaller.
const PAGE: u64 = 4096;

/// Whether a launch is sampled: by a number that looks like chance, so that programs with as many launches a step as
/// there are between two samples are not always seen at the same one.
fn chosen(launch: u64) -> bool {
    let every = u64::from(SAMPLE_EVERY.load());
    let mixed = (launch.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).wrapping_mul(0x85eb_ca6b) & 0xffff_ffff;
    every != 0 && mixed.wrapping_mul(every) >> 32 == 0
}

/// Nanoseconds of `CLOCK_MONOTONIC`. (The clock's last tick would be cheaper, but these programs may not ask for it.)
fn now() -> u64 {
    // SAFETY: helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

fn sample(ctx: &ProbeContext, cookie: Cookie, arguments: [u64; 4], index: u32, thread: u64) {
    let time = now();
    let Some(slot) = slots::get(index) else { return };
    if !slots::admits(slot, time) {
        slot.lost[Loss::Throttled as usize].add(1);
        return;
    }
    let [first, second, third, _] = arguments;
    let (array, function) = if cookie.shape() == Shape::LaunchThird as u64 {
        (third, second)
    } else {
        (stack_argument(ctx, 3), first)
    };
    if array == 0 {
        // The parameters are packed into a buffer (`extra`).
        return;
    }
    let mut record = Record {
        head: Record::head(Kind::Launch, LAUNCH, 0),
        tgid_tid: thread,
        time,
        slot: u64::from(index),
        address: function,
        ..Record::default()
    };
    if array % PAGE <= PAGE - 8 * SAMPLED_PARAMETERS as u64 {
        // In one page: all can be read, or nothing, and then zeros are what the helper leaves.
        // SAFETY: the words lie behind one another, and any bytes make words.
        let bytes = unsafe { &mut *(&raw mut record.parameters).cast::<[u8; 8 * SAMPLED_PARAMETERS]>() };
        // SAFETY: the helper checks the address.
        let _ = unsafe { bpf_probe_read_user_buf(array as *const u8, bytes) };
    } else {
        for (number, place) in record.parameters.iter_mut().enumerate() {
            *place = read_user(array.wrapping_add(8 * number as u64));
            if *place == 0 {
                break;
            }
        }
    }
    let mut behind = false;
    for parameter in &mut record.parameters {
        behind |= *parameter == 0;
        *parameter = if behind { 0 } else { read_user(*parameter) };
    }
    if RECORDS.output::<Record>(&record, wake()).is_err() {
        slots::lost(index, Loss::Full);
    }
}

/// Writes a record without its parameters.
pub fn emit_head(index: u32, record: &Record, wake: u64) {
    // SAFETY: the record begins with these words; all of it is initialised and without padding.
    let head = unsafe { &*core::ptr::from_ref(record).cast::<[u64; Record::HEAD_BYTES / 8]>() };
    if RECORDS.output::<[u64; Record::HEAD_BYTES / 8]>(head, wake).is_err() {
        slots::lost(index, Loss::Full);
    }
}

/// Lets the agent look now.
fn wake_agent(index: u32) {
    let record = Record { head: Record::head(Kind::Wake, 0, 0), ..Record::default() };
    emit_head(index, &record, u64::from(BPF_RB_FORCE_WAKEUP));
}

/// Whether the reader is to be woken for one more record.
pub fn wake() -> u64 {
    let waiting = RECORDS.query(u64::from(BPF_RB_AVAIL_DATA));
    u64::from(if waiting >= WAKE_AT { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

/// Meets the current thread: notes the time in its lane. False if it is one of the shim's. Its name is only asked for when
/// another thread called before, and the time only once in each of the kernel's ticks.
fn met(slot: &Shared, lane: &SharedLane, thread: u32) -> bool {
    // SAFETY: helper without arguments.
    let stamp = u64::from(thread) | unsafe { bpf_jiffies64() } << 32;
    let before = lane.stamp.load();
    if before == stamp {
        return true;
    }
    if before as u32 != thread {
        if is_engine() {
            return false;
        }
        slot.uses_lane(thread);
    }
    lane.last.store(now());
    lane.stamp.store(stamp);
    true
}

/// Whether the current thread is one of the shim's.
fn is_engine() -> bool {
    const PREFIX: u64 = u64::from_ne_bytes(*ENGINE_THREAD_PREFIX);
    let Ok(name) = bpf_get_current_comm() else { return false };
    // SAFETY: the name has 16 bytes, any alignment will do.
    unsafe { name.as_ptr().cast::<u64>().read_unaligned() == PREFIX }
}

/// Where a lane counts a call, if it does.
fn frequent(lane: &SharedLane, call: usize) -> Option<&Word> {
    lane.calls.iter().zip(FREQUENT).find(|(_, counted)| *counted as usize == call).map(|(counter, _)| counter)
}

/// A word of the process, 0 where there is none.
fn read_user(address: u64) -> u64 {
    // SAFETY: the helper checks the address and fails where nothing is mapped.
    unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or(0)
}

/// The first arguments. Volatile: the verifier takes only constant offsets into the registers, and the compiler would
/// make one load with a computed offset of two whose results are alternatives.
#[cfg(bpf_target_arch = "x86_64")]
fn arguments(ctx: &ProbeContext) -> [u64; 4] {
    // SAFETY: the registers are those of this program's context.
    unsafe {
        [
            (&raw const (*ctx.regs).rdi).read_volatile(),
            (&raw const (*ctx.regs).rsi).read_volatile(),
            (&raw const (*ctx.regs).rdx).read_volatile(),
            (&raw const (*ctx.regs).rcx).read_volatile(),
        ]
    }
}

/// The first arguments.
#[cfg(bpf_target_arch = "aarch64")]
fn arguments(ctx: &ProbeContext) -> [u64; 4] {
    // SAFETY: the registers are those of this program's context.
    unsafe { (&raw const (*ctx.regs).regs).cast::<[u64; 4]>().read_volatile() }
}

/// By how much the stack has shrunk when a function has returned: by the address to which it did.
#[cfg(bpf_target_arch = "x86_64")]
const RETURN_ADDRESS: u64 = 8;

/// Nothing: the address is in a register.
#[cfg(bpf_target_arch = "aarch64")]
const RETURN_ADDRESS: u64 = 0;

/// The stack pointer.
#[cfg(bpf_target_arch = "x86_64")]
fn stack(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
    // SAFETY: the registers are those of a program's context.
    unsafe { (*regs).rsp }
}

/// The stack pointer.
#[cfg(bpf_target_arch = "aarch64")]
fn stack(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
    // SAFETY: the registers are those of a program's context.
    unsafe { (*regs).sp }
}

/// The n-th argument on the stack. Probes sit where the stack pointer is still that of the entry.
#[cfg(bpf_target_arch = "x86_64")]
fn stack_argument(ctx: &ProbeContext, n: u64) -> u64 {
    // The return address lies below the arguments.
    read_user(stack(ctx.regs).wrapping_add(RETURN_ADDRESS + 8 * n))
}

/// The n-th argument on the stack, behind eight in registers where x86 has six.
#[cfg(bpf_target_arch = "aarch64")]
fn stack_argument(ctx: &ProbeContext, n: u64) -> u64 {
    read_user(stack(ctx.regs).wrapping_add(8 * n.saturating_sub(2)))
}
