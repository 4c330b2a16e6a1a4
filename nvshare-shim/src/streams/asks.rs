//! Asking the driver about something that another thread may take away, or must not be asked about for a moment: a stream
//! that is destroyed or captured, a context that ends. No lock is held over the call, which may take as long as it likes:
//! who asks says so first, and who bars waits for those who ask this very thing, for nobody else.
//!
//! Why it holds: who asks stores "asked", then loads "barred"; who bars stores "barred", then loads "asked", with a full
//! fence between. Either the one who asks sees the bar and makes no call, or the one who bars sees that he asks, and waits.

use super::sync::{AtomicUsize, Ordering, fence, pause};

/// See the module.
#[derive(Debug)]
pub(crate) struct Asks {
    asked: AtomicUsize,
    barred: AtomicUsize,
}

/// Nobody asks while it lives.
#[derive(Debug)]
#[must_use]
pub(crate) struct Bar<'a>(&'a Asks);

struct Asking<'a>(&'a Asks);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.0.lift();
    }
}

impl Asks {
    pub(crate) fn new() -> Asks {
        Asks { asked: AtomicUsize::new(0), barred: AtomicUsize::new(0) }
    }

    /// Asks, unless that is barred.
    pub(crate) fn ask<T>(&self, question: impl FnOnce() -> T) -> Option<T> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _asking = Asking(self);
        fence(Ordering::SeqCst);
        (self.barred.load(Ordering::SeqCst) == 0).then(question)
    }

    /// Bars until the guard goes. Waits for those who ask now; never call it while asking the same.
    pub(crate) fn bar(&self) -> Bar<'_> {
        self.close();
        Bar(self)
    }

    /// As [`Asks::bar`], until [`Asks::lift`].
    pub(crate) fn close(&self) {
        self.barred.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while self.asked.load(Ordering::SeqCst) != 0 {
            pause();
        }
    }

    /// Ends one [`Asks::close`].
    pub(crate) fn lift(&self) {
        self.barred.fetch_sub(1, Ordering::SeqCst);
    }
}
