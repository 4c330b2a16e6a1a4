//! A bug of x86 kernels from 6.11 on: a return probe makes the observed process enter the kernel by a system call of its
//! own, and where a seccomp filter does not know that call (as in containers) the process is killed (systemd issue
//! 34615; fixed in 6.14 and some earlier ones). So return probes are tried at start, on a child of ours under such a
//! filter, and done without where it dies.

#![expect(unsafe_code, reason = "a child is made and waited for")]

use super::programs::Programs;

/// Whether return probes are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Returns {
    /// They work, also under seccomp, or were never made by a system call here.
    Sound,
    /// They would kill processes, or may; why.
    Unsound(String),
}

/// Tries it.
#[cfg(target_arch = "x86_64")]
pub(super) fn try_returns(programs: &Programs) -> Returns {
    if !programs.multi() {
        // A kernel before 6.6.
        return Returns::Sound;
    }
    match trial::under_filter(programs) {
        Ok(true) => Returns::Sound,
        Ok(false) => Returns::Unsound(
            "this kernel kills processes under seccomp when a return probe is hit (Linux 6.11 and later without the fix of \
             6.14): results of allocations are not observed; update the kernel"
                .into(),
        ),
        Err(why) => Returns::Unsound(format!(
            "could not find out whether return probes are safe under seccomp ({why}): results of allocations are not observed"
        )),
    }
}

/// Other machines return through a breakpoint.
#[cfg(not(target_arch = "x86_64"))]
pub fn try_returns(_programs: &Programs) -> Returns {
    Returns::Sound
}

#[cfg(target_arch = "x86_64")]
mod trial {
    use std::hint::black_box;
    use std::io;

    use crate::observer::programs::Programs;

    /// The system call that return probes make.
    const SYS_URETPROBE: u32 = 335;
    const DONE: i32 = 42;

    /// What the child calls.
    #[inline(never)]
    extern "C" fn probed(value: u64) -> u64 {
        black_box(value).wrapping_mul(3)
    }

    /// Whether a child under a filter survives a return probe.
    pub(super) fn under_filter(programs: &Programs) -> Result<bool, String> {
        let function: extern "C" fn(u64) -> u64 = black_box(probed);
        let offset = offset_in_file(function as usize as u64).ok_or("its own code is in no file")?;
        let _link = programs
            .attach_return("/proc/self/exe", offset)
            .ok_or("no probe that can be tried")?
            .map_err(|error| format!("a return probe on the agent itself: {error}"))?;
        let mut filter = [
            // The number of the system call: the first word of `seccomp_data`.
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYS_URETPROBE),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the child makes only system calls and calls `probed`, all safe after a fork of a process with threads.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(io::Error::last_os_error().to_string());
        }
        if child == 0 {
            // SAFETY: plain system calls; the filter lives on this stack.
            unsafe {
                let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
                if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                    || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
                {
                    libc::_exit(1);
                }
                libc::_exit(if function(14) == 42 { DONE } else { 2 });
            }
        }
        let mut status = 0;
        // SAFETY: our own child, waited for once.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
            return Err(io::Error::last_os_error().to_string());
        }
        if libc::WIFSIGNALED(status) {
            return Ok(false);
        }
        match libc::WEXITSTATUS(status) {
            DONE => Ok(true),
            other => Err(format!("the child ended with {other}")),
        }
    }

    fn instruction(code: u32, if_true: u8, if_false: u8, value: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt: if_true, jf: if_false, k: value }
    }

    /// Where in this program's file an address of its code lies.
    fn offset_in_file(address: u64) -> Option<u64> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap_or(0));
            let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            (start..end).contains(&address).then_some(address - start + offset)
        })
    }
}
