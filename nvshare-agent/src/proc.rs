//! What `/proc` says of a process.

use nvshare_agent_core::process::Process;

/// The process that has `pid` now; `None` if there is none.
pub fn process(pid: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything: fields are counted behind the last one.
    let start = status.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(Process { pid, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_with_its_start() {
        let this = process(std::process::id()).unwrap();
        assert!(this.start > 0);
        assert_eq!(process(std::process::id()), Some(this));
        assert_eq!(process(u32::MAX), None);
    }
}
