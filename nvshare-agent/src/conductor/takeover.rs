//! Whom a new agent waits for: processes that use the driver under the shim, and have an agent's socket where ours is.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nvshare_common::protocol;

/// Their pids.
pub(super) fn awaited(socket: &Path) -> BTreeSet<u32> {
    let Some(ours) = socket.parent().and_then(|directory| std::fs::metadata(directory).ok()) else {
        return BTreeSet::new();
    };
    let Ok(processes) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| uses_driver_and_shim(*pid) && looks_for(*pid, ours.dev(), ours.ino())).collect()
}

fn uses_driver_and_shim(pid: u32) -> bool {
    let Ok(maps) = std::fs::read(format!("/proc/{pid}/maps")) else { return false };
    let has = |name: &[u8]| maps.windows(name.len()).any(|piece| piece == name);
    has(b"/libnvshare.so") && has(b"/libcuda.so")
}

/// Whether the directory in which the process looks for an agent is this one.
fn looks_for(pid: u32, device: u64, inode: u64) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let named = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"NVSHARE_SOCKET="))
        .map_or(protocol::SOCKET.into(), |value| String::from_utf8_lossy(value).into_owned());
    let Some(directory) = Path::new(&named).parent() else { return false };
    let inside = format!("/proc/{pid}/root{}", directory.display());
    std::fs::metadata(inside).is_ok_and(|found| found.dev() == device && found.ino() == inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_neither_and_is_not_awaited() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!awaited(&directory.path().join("agent.sock")).contains(&std::process::id()));
        assert!(awaited(Path::new("/nowhere/at/all")).is_empty());
    }
}
