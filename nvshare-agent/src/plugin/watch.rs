//! Sees files come and go in the kubelet's directory: the kubelet announces its restart in no other way.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ready::wait_for;

/// Watches one directory until dropped.
#[derive(Debug)]
pub(super) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to watch `directory`, which has to be there.
    pub(super) fn begin(directory: &Path) -> io::Result<Watch> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let of_interest = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&events, directory, of_interest)?;
        Ok(Watch(wait_for(events, Interest::READABLE)?))
    }

    /// Waits until something came or went since the last time. What it was is for the caller to look at: events can be
    /// lost, files cannot.
    pub(super) async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            let mut any = false;
            let read = ready.try_io(|events| {
                let mut buffer = [0_u8; 4096];
                loop {
                    // At the end of what there is: `WouldBlock`, which says so to the `AsyncFd` too.
                    match rustix::io::read(events, &mut buffer) {
                        Ok(_) => any = true,
                        Err(error) => return Err::<(), _>(io::Error::from(error)),
                    }
                }
            });
            match (any, read) {
                (true, _) => return,
                // Nothing there, whatever woke us.
                (false, Err(_)) => {}
                // Broken for good: the timer is left.
                (false, Ok(_)) => return std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn files_that_come_and_go_are_seen_once_and_silence_is_silence() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::begin(directory.path()).unwrap();
        let silent = async |watch: &Watch| {
            tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_err()
        };
        assert!(silent(&watch).await);
        let file = directory.path().join("kubelet.sock");
        for change in ["create", "remove"] {
            if change == "create" {
                std::fs::write(&file, "").unwrap();
            } else {
                std::fs::remove_file(&file).unwrap();
            }
            tokio::time::timeout(Duration::from_secs(10), watch.changed()).await.expect(change);
            assert!(silent(&watch).await);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_cannot_be_watched() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(async { Watch::begin(Path::new("/nowhere")) }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
