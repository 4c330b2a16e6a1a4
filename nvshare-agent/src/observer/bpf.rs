//! The calls of bpf(2) that aya has not: loading a program for `uprobe_multi`, linking it to many places of one file at
//! once, and asking what such a program has cost.

#![expect(unsafe_code, reason = "the system call takes structures of its own")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_LINK_CREATE: u32 = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// The first words of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// The first words of `union bpf_attr` for `BPF_LINK_CREATE` with `uprobe_multi`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    reference_counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    process: u32,
    padding: u32,
}

/// Loads a program as one for `uprobe_multi`. The error comes with what the verifier said, if it spoke.
pub(super) fn load_multi(
    name: &str,
    license: &CStr,
    instructions: &[aya_obj::generated::bpf_insn],
) -> Result<OwnedFd, (io::Error, String)> {
    let load = |log: &mut [u8]| {
        let mut attributes = ProgramLoad {
            program_type: BPF_PROG_TYPE_KPROBE,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            expected_attach_type: BPF_TRACE_UPROBE_MULTI,
            ..ProgramLoad::default()
        };
        for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        call(BPF_PROG_LOAD, &attributes)
    };
    load(&mut []).or_else(|_| {
        // Once more, for the reasons.
        let mut log = vec![0_u8; 1 << 20];
        load(&mut log).map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            (error, String::from_utf8_lossy(&log[..end]).into_owned())
        })
    })
}

/// Puts the program at every offset of the file, each with its cookie: at the call, or at its return. Nothing happens
/// at any place if one of them is refused. Dropping the descriptor takes all of them away.
pub(super) fn link_multi(
    program: BorrowedFd,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    returns: bool,
) -> io::Result<OwnedFd> {
    assert_eq!(offsets.len(), cookies.len(), "a cookie for each offset");
    call(
        BPF_LINK_CREATE,
        &LinkCreate {
            program: program.as_raw_fd() as u32,
            attach_type: BPF_TRACE_UPROBE_MULTI,
            path: path.as_ptr() as u64,
            offsets: offsets.as_ptr() as u64,
            cookies: cookies.as_ptr() as u64,
            count: offsets.len() as u32,
            multi_flags: if returns { BPF_F_UPROBE_MULTI_RETURN } else { 0 },
            ..LinkCreate::default()
        },
    )
}

/// The words of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// For how many nanoseconds a program ran, and how often. Zeros where the kernel does not measure
/// (`kernel.bpf_stats_enabled`).
pub(super) fn cost(program: BorrowedFd) -> io::Result<(u64, u64)> {
    // SAFETY: plain words, for which zeros are valid: nothing else is asked for.
    let mut info: aya_obj::generated::bpf_prog_info = unsafe { std::mem::zeroed() };
    let attributes = GetInfo {
        descriptor: program.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attributes are the command's, as long as their type says, and `info` is as long as they say.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attributes, size_of::<GetInfo>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.run_time_ns, info.run_cnt))
}

/// bpf(2), for commands that answer with a descriptor.
fn call<T>(command: u32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are the command's, as long as their type says; what they point to lives in the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands answer with a new descriptor, close-on-exec, that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
