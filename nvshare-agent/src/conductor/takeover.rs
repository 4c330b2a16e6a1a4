//! Between two agents. Whom a new agent waits for: processes that use the driver under the shim, and have an agent's socket where ours is, or
//! had it in a directory that was removed since: those come in by their back doors.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::reading::Report;

use super::Conductor;
use crate::control::{Home, is_removed, lookers};

/// How long a new agent waits for the clients of the previous one.
const TAKEOVER: Duration = Duration::from_secs(5);

impl Conductor {
    pub(super) fn take_over(&mut self, now: Moment) {
        self.awaited.retain(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
        let over = now.since(self.began) >= TAKEOVER;
        if self.awaited.is_empty() || over {
            self.core.begin_granting(now);
            let (clients, missing) = (self.core.ledger.clients().len(), self.awaited.len());
            if missing > 0 {
                tracing::info!(
                    clients,
                    missing,
                    "granting begins; clients that did not come count as foreign"
                );
            } else if clients > 0 {
                tracing::info!(clients, "granting begins; all clients of the previous agent came");
            } else {
                tracing::debug!("granting begins");
            }
        }
    }

    /// Files on which clients without an agent take turns: they cannot create them in a read-only mount.
    pub(super) fn lock_files(&mut self, report: &Report) {
        let Some(directory) = &self.directory else { return };
        for reading in &report.devices {
            if self.locked.insert(reading.device) {
                let path = directory.join(format!("device-{}.lock", reading.device));
                let made = std::fs::OpenOptions::new().create(true).append(true).open(&path);
                if let Err(error) = made {
                    tracing::warn!(path = %path.display(), %error, "cannot create a lock file for clients without an agent");
                }
            }
        }
    }
}

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
    lookers(&Home::of(socket))
        .into_iter()
        .filter(|(_, directory)| comes(directory))
        .map(|(pid, _)| pid)
        .collect()
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
