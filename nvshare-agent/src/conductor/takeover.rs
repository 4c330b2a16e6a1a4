//! Whom a new agent waits for: processes that use the driver under the shim, and have an agent's socket where ours is, or
//! had it in a directory that was removed since: those come in by their back doors.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::control::{is_removed, lookers};

/// Their pids.
pub(super) fn awaited(socket: &Path) -> BTreeSet<u32> {
    let Some(ours) = socket.parent().and_then(|directory| std::fs::metadata(directory).ok()) else {
        return BTreeSet::new();
    };
    let here = |directory: &Path| {
        let found = std::fs::metadata(directory);
        found.is_ok_and(|found| found.dev() == ours.dev() && found.ino() == ours.ino())
    };
    let comes = |directory: &Path| here(directory) || is_removed(directory);
    lookers().into_iter().filter(|(_, directory)| comes(directory)).map(|(pid, _)| pid).collect()
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
