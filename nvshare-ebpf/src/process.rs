//! Processes that replace their program or end. Only those that have a slot are spoken of.

#![expect(unsafe_code, reason = "helpers of the kernel are called")]

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use nvshare_common::event::{Kind, Record};

use crate::{calls, slots, uvm};

/// The program that counted under the slot is gone; a new one begins at zero, as its shim does.
pub fn replaced() {
    let thread = bpf_get_current_pid_tgid();
    uvm::ends_or_changes((thread >> 32) as u32);
    if let Some(slot) = slots::abandon((thread >> 32) as u32) {
        tell(Kind::Exec, thread, slot);
    }
}

/// The end of a first thread is only a hint: others may still run. The agent asks the process's descriptor.
pub fn thread_ended() {
    let thread = bpf_get_current_pid_tgid();
    let tgid = (thread >> 32) as u32;
    if tgid == thread as u32 {
        uvm::ends_or_changes(tgid);
    }
    let Some(slot) = slots::find(tgid) else { return };
    if let Some(lane) = slots::lane(slot, thread as u32)
        && lane.stamp.load() as u32 == thread as u32
    {
        // Its number may be an engine's next.
        lane.stamp.store(0);
    }
    if tgid == thread as u32 {
        tell(Kind::Exit, thread, slot);
    }
}

fn tell(kind: Kind, thread: u64, slot: u32) {
    let record = Record {
        head: Record::head(kind, 0, 0),
        tgid_tid: thread,
        // SAFETY: helper without arguments.
        time: unsafe { bpf_ktime_get_ns() },
        slot: u64::from(slot),
        ..Record::default()
    };
    calls::emit_head(slot, &record, calls::wake());
}
