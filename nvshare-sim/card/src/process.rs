//! Who a process is and whether it still lives: its id and start time, so that an id used again is somebody else.
//!
//! All processes that use a card have to mean the same by an id, as the real driver does, which knows the ids of the
//! whole machine. In a container with a pid namespace of its own `NVSHARE_SIM_PROC` names the machine's `/proc`, mounted
//! there for the simulator: what that shows as `self` is the id outside.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// A process for as long as the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start: u64,
}

/// The identity of this process.
pub fn this() -> Identity {
    let pid = fs::read_link(procfs().join("self")).ok().and_then(|name| name.to_str()?.parse().ok());
    let pid = pid.unwrap_or_else(std::process::id);
    Identity { pid, start: living(pid).unwrap_or(0) }
}

/// Where processes are looked up.
fn procfs() -> &'static PathBuf {
    static PROCFS: OnceLock<PathBuf> = OnceLock::new();
    PROCFS.get_or_init(|| std::env::var_os("NVSHARE_SIM_PROC").unwrap_or_else(|| "/proc".into()).into())
}

/// Whether the process still runs. A zombie no longer holds anything, except one whose other threads run on.
pub fn is_alive(identity: Identity) -> bool {
    living(identity.pid) == Some(identity.start)
}

/// The start time of a process that runs.
fn living(pid: u32) -> Option<u64> {
    parse_stat(&fs::read_to_string(procfs().join(format!("{pid}/stat"))).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The name is in parentheses and may itself contain any character.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    (!(matches!(state, "Z" | "X") && threads <= 1)).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_one_with_another_start_does_not() {
        let me = this();
        assert!(me.start > 0 && me.pid == std::process::id() && is_alive(me));
        assert!(!is_alive(Identity { start: me.start - 1, ..me }));
    }

    #[test]
    fn a_zombie_is_dead_unless_other_threads_run() {
        let stat = |state: &str, threads: u32| {
            format!("7 (a b) c) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 0 4242 99")
        };
        assert_eq!(parse_stat(&stat("S", 1)), Some(4242));
        assert_eq!(parse_stat(&stat("Z", 1)), None);
        assert_eq!(parse_stat(&stat("Z", 3)), Some(4242));
    }
}
