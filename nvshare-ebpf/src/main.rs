//! The eBPF programs: they count and describe the driver calls of every process on a node.
//!
//! - [`slots`]: who called what how often, in one array that the agent maps.
//! - [`calls`]: what a call was about, from its arguments and its result, through a ring buffer.
//! - [`process`]: programs that are replaced or end.
//! - [`uvm`]: faults and migrations of managed memory, from NVIDIA's kernel module. Loaded only where that is.
//!
//! What they share with the agent is `nvshare_common::event`; what they are attached to, `nvshare_common::probe`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs call with a value")]
#![expect(missing_docs, reason = "the macros of the programs write functions without")]

mod calls;
mod process;
mod slots;
mod uvm;

use aya_ebpf::macros::{kprobe, raw_tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext, RetProbeContext};

/// At the entry of every observed function; the cookie says which.
#[uprobe]
pub fn entry(ctx: ProbeContext) -> u32 {
    calls::entered(&ctx);
    0
}

/// At the return of those whose result is needed.
#[uretprobe]
pub fn returned(ctx: RetProbeContext) -> u32 {
    calls::returned(&ctx);
    0
}

/// After a process has replaced its program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(_ctx: RawTracePointContext) -> i32 {
    process::replaced();
    0
}

/// When a thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit(_ctx: RawTracePointContext) -> i32 {
    process::thread_ended();
    0
}

/// At `uvm_perf_init_va_space_events(va_space, events)`.
#[kprobe]
pub fn uvm_space_begins(ctx: ProbeContext) -> u32 {
    if let Some(events) = ctx.arg(1) {
        uvm::begins(events);
    }
    0
}

/// At `uvm_perf_event_notify(events, kind, event)`.
#[kprobe]
pub fn uvm_event(ctx: ProbeContext) -> u32 {
    if let (Some(events), Some(kind), Some(event)) = (ctx.arg(0), ctx.arg::<u64>(1), ctx.arg(2)) {
        uvm::happened(events, kind as u32, event);
    }
    0
}

/// At `uvm_perf_destroy_va_space_events(events)`.
#[kprobe]
pub fn uvm_space_ends(ctx: ProbeContext) -> u32 {
    if let Some(events) = ctx.arg(0) {
        uvm::ends(events);
    }
    0
}

/// The kernel lets only programs under the GPL use some helpers.
#[expect(unsafe_code, reason = "the kernel looks for it by its section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
