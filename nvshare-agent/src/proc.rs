//! What `/proc` says of a process.

use nvshare_agent_core::observation::Identity;
use nvshare_agent_core::process::Process;

use crate::pods::cgroup;

/// The process that has `pid` now; `None` if there is none.
pub fn process(pid: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything: fields are counted behind the last one.
    let start = status.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(Process { pid, start })
}

/// The name of the program of `pid`, and the path of its cgroup that tells most; empty where it is gone.
pub fn identity(pid: u32) -> Identity {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let name = read("comm").trim_end().to_owned();
    Identity { name, cgroup: cgroup::path(&read("cgroup")).to_owned() }
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

    #[test]
    fn a_process_has_the_name_of_its_program_and_a_cgroup_and_nobody_has_neither() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        // It has ours until the kernel has replaced the program, a moment after it lets us go on.
        let asked = nvshare_testbed::wait_for("it has its name", std::time::Duration::from_secs(20), || {
            Some(identity(child.id())).filter(|asked| asked.name == "sleep")
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(asked.cgroup.starts_with('/'), "{asked:?}");
        assert_eq!(identity(u32::MAX), Identity::default());
    }
}
