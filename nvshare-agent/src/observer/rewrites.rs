//! Files that are written to while they are observed (a library that is copied over another instead of being put in its
//! place): the kernel would go on to put breakpoints where instructions began in the old contents.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::inotify;

/// Watches them.
pub(super) struct Rewrites(Option<Arc<OwnedFd>>);

/// One that is watched, until this is dropped.
pub(super) struct Watched {
    inotify: Arc<OwnedFd>,
    number: i32,
}

impl Rewrites {
    /// None yet. Where the kernel has no room for a watch, files are taken to stay as they are.
    pub(super) fn new() -> Rewrites {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let made = inotify::init(flags);
        let made = made.inspect_err(|error| tracing::warn!(%error, "cannot watch libraries for changes"));
        Rewrites(made.ok().map(Arc::new))
    }

    /// Watches one more.
    pub(super) fn watch(&self, file: &File) -> Option<Watched> {
        let inotify = Arc::clone(self.0.as_ref()?);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let number = inotify::add_watch(&inotify, path, inotify::WatchFlags::MODIFY)
            .inspect_err(|error| tracing::warn!(%error, "cannot watch a library for changes"))
            .ok()?;
        Some(Watched { inotify, number })
    }

    /// Readable when one was written to.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// Which were, each once.
    pub(super) fn read(&self) -> Vec<i32> {
        let mut written = Vec::new();
        let Some(descriptor) = &self.0 else { return written };
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(descriptor, &mut room);
        while let Ok(event) = events.next() {
            if event.events().contains(inotify::ReadFlags::MODIFY) && !written.contains(&event.wd()) {
                written.push(event.wd());
            }
        }
        written
    }
}

impl Watched {
    /// As [`Rewrites::read`] names it.
    pub(super) fn number(&self) -> i32 {
        self.number
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Fails if the file is gone altogether.
        let _ = inotify::remove_watch(&*self.inotify, self.number);
    }
}
