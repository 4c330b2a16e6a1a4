//! Calls: counted at entry; described by a record, at entry or, where the result is needed, at return.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{
    bpf_get_attach_cookie, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
    bpf_probe_read_user,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, RingBuf};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use aya_ebpf::{EbpfContext, Global};
use nvshare_common::event::{Cookie, Kind, RING_BYTES, Record, SAMPLED_PARAMETERS, Shape};
use nvshare_common::probe::{Call, ENGINE_THREAD_PREFIX};

use crate::slots;

/// One launch in this many is sampled with its parameters; 0: none.
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
    time: u64,
    arguments: [u64; 4],
}

/// Threads inside a followed call. Calls that never return (their threads were killed inside) make room for new ones.
#[map]
static FOLLOWED: LruHashMap<u64, Entered> = LruHashMap::with_max_entries(16 * 1024, 0);

const LAUNCH: usize = Call::Launch as usize;
const GRAPH_LAUNCH: usize = Call::GraphLaunch as usize;

pub fn entered(ctx: &ProbeContext) {
    // SAFETY: the context is the one this program was called with.
    let cookie = Cookie(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) });
    let call = cookie.call();
    if call >= Call::COUNT {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    let index = slots::find_or_claim(ctx, (thread >> 32) as u32);
    let Some(slot) = slots::get(index) else { return };
    // SAFETY: helper without arguments.
    let time = unsafe { bpf_ktime_get_ns() };

    let arguments = arguments(ctx);
    let engine = is_engine();
    if engine {
        slot.engine[call].add(1);
    } else {
        let before = slot.application[call].load();
        slot.application[call].add(1);
        slot.last.store(time);
        if call == LAUNCH || call == GRAPH_LAUNCH {
            slot.last_launch.store(time);
        }
        let every = u64::from(SAMPLE_EVERY.load());
        if call == LAUNCH && every != 0 && before % every == 0 {
            sample(ctx, cookie, arguments, index, thread, time);
        }
    }
    if cookie.shape() == Shape::Counted as u64 || call == LAUNCH {
        return;
    }
    let mut flags = if engine { Record::ENGINE } else { 0 };
    if cookie.located() {
        flags |= Record::LOCATED;
    }
    let entered = Entered { cookie: cookie.0, flags_slot: flags | u64::from(index) << 32, time, arguments };
    if cookie.followed() {
        if FOLLOWED.insert(thread, entered, 0).is_err() {
            slots::lost(index);
        }
    } else {
        describe(thread, &entered, NOT_FOLLOWED);
    }
}

pub fn returned(ctx: &RetProbeContext) {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes or removes the entry of this thread.
    let Some(entered) = (unsafe { FOLLOWED.get(thread) }).copied() else {
        // The call began before its function was observed.
        return;
    };
    let _ = FOLLOWED.remove(thread);
    describe(thread, &entered, u64::from(ctx.ret::<u32>()));
}

/// Forgets a thread that will not return.
pub fn forget(thread: u64) {
    let _ = FOLLOWED.remove(thread);
}

/// No result is known. (An `Option` would pass an uninitialised register, which the verifier refuses.)
const NOT_FOLLOWED: u64 = u64::MAX;

fn describe(thread: u64, entered: &Entered, result: u64) {
    let cookie = Cookie(entered.cookie);
    let index = (entered.flags_slot >> 32) as u32;
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
    } else if shape == Shape::Address as u64 {
        address = first;
    } else {
        (address, bytes, detail, further) = (first, second, third, fourth);
    }
    let record = Record {
        head: Record::head(Kind::Call, cookie.call(), flags),
        tgid_tid: thread,
        time: entered.time,
        slot: u64::from(index),
        result: if result == NOT_FOLLOWED { 0 } else { result },
        address,
        bytes,
        detail,
        further,
        parameters: [0; SAMPLED_PARAMETERS],
    };
    emit_head(index, &record);
}

fn sample(ctx: &ProbeContext, cookie: Cookie, arguments: [u64; 4], index: u32, thread: u64, time: u64) {
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
    for (number, parameter) in record.parameters.iter_mut().enumerate() {
        let place = read_user(array.wrapping_add(8 * number as u64));
        if place == 0 {
            break;
        }
        *parameter = read_user(place);
    }
    if RECORDS.output::<Record>(&record, wake()).is_err() {
        slots::lost(index);
    }
}

/// Writes a record without its parameters.
pub fn emit_head(index: u32, record: &Record) {
    // SAFETY: the record begins with these words; all of it is initialised and without padding.
    let head = unsafe { &*core::ptr::from_ref(record).cast::<[u64; Record::HEAD_BYTES / 8]>() };
    if RECORDS.output::<[u64; Record::HEAD_BYTES / 8]>(head, wake()).is_err() {
        slots::lost(index);
    }
}

fn wake() -> u64 {
    let waiting = RECORDS.query(u64::from(BPF_RB_AVAIL_DATA));
    u64::from(if waiting >= WAKE_AT { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

/// Whether the current thread is one of the shim's.
fn is_engine() -> bool {
    const PREFIX: u64 = u64::from_ne_bytes(*ENGINE_THREAD_PREFIX);
    let Ok(name) = bpf_get_current_comm() else { return false };
    // SAFETY: the name has 16 bytes, any alignment will do.
    unsafe { name.as_ptr().cast::<u64>().read_unaligned() == PREFIX }
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

/// The n-th argument on the stack. Probes sit where the stack pointer is still that of the entry.
#[cfg(bpf_target_arch = "x86_64")]
fn stack_argument(ctx: &ProbeContext, n: u64) -> u64 {
    // SAFETY: the registers are those of this program's context. The return address lies below the arguments.
    let stack = unsafe { (*ctx.regs).rsp };
    read_user(stack.wrapping_add(8 + 8 * n))
}

/// The n-th argument on the stack, behind eight in registers where x86 has six.
#[cfg(bpf_target_arch = "aarch64")]
fn stack_argument(ctx: &ProbeContext, n: u64) -> u64 {
    // SAFETY: the registers are those of this program's context.
    let stack = unsafe { (*ctx.regs).sp };
    read_user(stack.wrapping_add(8 * n.saturating_sub(2)))
}
