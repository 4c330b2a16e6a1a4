//! How much host memory may be taken for arenas of our own, which are charged to the pod: going over its limit, or the
//! node's memory, would not be an error but the end of somebody.

use std::path::Path;

/// A part of every limit that is left alone: a sixteenth.
const MARGIN: u64 = 16;

/// Bytes that can be had now, by the node and by the container.
pub fn bytes() -> u64 {
    node(&read("/proc/meminfo")).min(container(Path::new("/sys/fs/cgroup")))
}

/// By `/proc/meminfo`; what it does not say is no limit.
fn node(meminfo: &str) -> u64 {
    let kilobytes = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    match (kilobytes("MemAvailable:"), kilobytes("MemTotal:")) {
        (Some(available), Some(total)) => available.saturating_sub(total / MARGIN) << 10,
        _ => u64::MAX,
    }
}

/// By the control group as the container sees it, of version 2 or 1; what it does not say is no limit.
fn container(root: &Path) -> u64 {
    let number = |file: &str| read(root.join(file)).trim().parse::<u64>().ok();
    let limits =
        [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")];
    let left = limits.into_iter().filter_map(|(limit, used)| {
        let (limit, used) = (number(limit)?, number(used)?);
        Some(limit.saturating_sub(limit / MARGIN).saturating_sub(used))
    });
    left.min().unwrap_or(u64::MAX)
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_of_the_node_is_left_alone() {
        let meminfo = "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    5000 kB\n";
        assert_eq!(node(meminfo), 4000 << 10);
        assert_eq!(node("MemTotal: 16000 kB\nMemAvailable: 10 kB\n"), 0);
        assert_eq!(node(""), u64::MAX);
    }

    #[test]
    fn a_container_is_asked_by_either_version() {
        let directory = std::env::temp_dir().join(format!("nvshare-available-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("memory")).unwrap();
        assert_eq!(container(&directory), u64::MAX);
        std::fs::write(directory.join("memory.max"), "max\n").unwrap();
        std::fs::write(directory.join("memory.current"), "7\n").unwrap();
        assert_eq!(container(&directory), u64::MAX);
        std::fs::write(directory.join("memory.max"), "1600\n").unwrap();
        assert_eq!(container(&directory), 1493);
        std::fs::write(directory.join("memory/memory.limit_in_bytes"), "160\n").unwrap();
        std::fs::write(directory.join("memory/memory.usage_in_bytes"), "100\n").unwrap();
        assert_eq!(container(&directory), 50);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
