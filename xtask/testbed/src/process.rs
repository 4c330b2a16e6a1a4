//! What tests ask of processes, and do to those that they started.

#![expect(unsafe_code, reason = "signals are sent, and a child is prepared between fork and exec")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Whether this is root, in the user namespace that it is in.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Sends a process that was started here, and not waited for yet, a signal.
///
/// # Errors
/// Where it is not there, or not ours.
pub fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: touches no memory of ours; the process is one that was started here.
    match unsafe { libc::kill(pid as libc::pid_t, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills the process when the thread that spawned it ends, so that no failed test leaves anything behind.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe, and the closure touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Puts the process into a cgroup before it runs its program; `members` is that one's `cgroup.procs`.
pub(crate) fn enter_at_birth(command: &mut Command, members: File) {
    // SAFETY: a write is async-signal-safe, and so is the closure, which allocates nothing: the file was opened before.
    unsafe {
        // Nobody's number: whoever writes.
        command.pre_exec(move || (&members).write_all(b"0"));
    }
}
