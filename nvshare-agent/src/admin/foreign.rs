//! Processes that use the driver without the library, for people: who they are, whose, and what they hold.

use nvshare_agent_core::snapshot::Foreign;
use nvshare_common::bytes::Bytes;

use super::view::{printable, table};

/// Above the table of them.
pub(super) const TITLE: &str = "processes without the library";
/// The names of its columns.
pub(super) const HEAD: [&str; 6] = ["PID", "NAME", "POD", "HOLDS", "ALLOCATED", "MANAGED"];

/// One line for each, those that hold most first.
pub(super) fn rows(processes: &[Foreign]) -> Vec<[String; 6]> {
    let held = |of: &Foreign| of.measured.max(of.allocated).0.saturating_add(of.managed.0);
    let mut processes: Vec<&Foreign> = processes.iter().collect();
    processes.sort_by_key(|process| (std::cmp::Reverse(held(process)), process.process.pid));
    processes.into_iter().map(row).collect()
}

fn row(process: &Foreign) -> [String; 6] {
    let seen = |bytes: Bytes| if process.inexact { format!("~{bytes}") } else { bytes.to_string() };
    [
        process.process.pid.to_string(),
        printable(&process.name),
        printable(&process.owner.to_string()),
        process.measured.to_string(),
        seen(process.allocated),
        seen(process.managed),
    ]
}

/// The title and the table; nothing where there are none.
pub(super) fn text(processes: &[Foreign]) -> String {
    if processes.is_empty() {
        return String::new();
    }
    format!("\n{TITLE}:\n{}", table(HEAD, rows(processes).into_iter()))
}

#[cfg(test)]
pub(super) mod tests {
    use nvshare_agent_core::process::Process;
    use nvshare_agent_core::snapshot::Owner;

    use super::*;

    pub(in super::super) fn process(pid: u32, name: &str, pod: &str, allocated: u64) -> Foreign {
        let owner = match pod {
            "" => Owner::default(),
            pod => Owner { namespace: "ml".into(), pod: pod.into(), container: "main".into() },
        };
        Foreign {
            process: Process { pid, start: 1 },
            name: name.to_owned(),
            owner,
            measured: Bytes::ZERO,
            allocated: Bytes(allocated),
            by_device: std::collections::BTreeMap::new(),
            pooled: Bytes::ZERO,
            managed: Bytes(2 << 20),
            uvm_faults: 0,
            uvm_cpu_faults: 0,
            uvm_bytes: Bytes::ZERO,
            uvm_to_device: Bytes::ZERO,
            inexact: false,
            idle_seconds: 0.0,
            seen: nvshare_agent_core::snapshot::Calls::default(),
        }
    }

    #[test]
    fn each_is_named_with_its_pod_and_what_it_holds_most_first() {
        let mut lossy = process(8, "py\u{1b}thon", "train-0", 3 << 30);
        lossy.inexact = true;
        lossy.measured = Bytes(4 << 30);
        let expected = "\nprocesses without the library:\n\
                        PID  NAME      POD              HOLDS  ALLOCATED  MANAGED\n\
                        8    py?thon   ml/train-0/main  4 GiB  ~3 GiB     ~2 MiB\n\
                        7    miner     -                0 B    1 GiB      2 MiB\n\
                        9    notebook  -                0 B    1 GiB      2 MiB\n";
        assert_eq!(
            text(&[process(9, "notebook", "", 1 << 30), process(7, "miner", "", 1 << 30), lossy]),
            expected
        );
    }

    #[test]
    fn where_there_are_none_nothing_is_said() {
        assert_eq!(text(&[]), "");
    }
}
