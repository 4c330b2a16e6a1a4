//! Who copies between arenas and a device just now. Every engine uses every arena, and each arena is pinned in the context
//! of one of them. An engine that leaves its context unpins what is pinned there: before that it recalls the arenas, and
//! the others finish what is under way and begin nothing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct Held {
    guards: usize,
    recalls: usize,
}

static HELD: Mutex<Held> = Mutex::new(Held { guards: 0, recalls: 0 });
static CHANGED: Condvar = Condvar::new();

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, every arena stays as it is pinned. An engine has one while copies of its own are under way.
#[derive(Debug)]
pub struct PinGuard(());

impl Drop for PinGuard {
    fn drop(&mut self) {
        held().guards -= 1;
        CHANGED.notify_all();
    }
}

/// Waits out a recall. The calling engine has no guard.
pub fn hold() -> PinGuard {
    let mut held =
        CHANGED.wait_while(held(), |held| held.recalls > 0).unwrap_or_else(PoisonError::into_inner);
    held.guards += 1;
    PinGuard(())
}

/// Whether an engine may begin another copy under its `guard`, which it takes if it has none. Not during a recall: then it
/// finishes what is under way, gives the guard back, and is woken afterwards.
pub fn may_begin(guard: &mut Option<PinGuard>) -> bool {
    let mut held = held();
    if held.recalls > 0 {
        return false;
    }
    guard.get_or_insert_with(|| {
        held.guards += 1;
        PinGuard(())
    });
    true
}

/// Does something to arenas that no copy may be under way for. The calling engine has no guard.
pub fn recalled(change: impl FnOnce()) {
    /// Ends the recall, whatever happens.
    struct Recall;
    impl Drop for Recall {
        fn drop(&mut self) {
            held().recalls -= 1;
            CHANGED.notify_all();
        }
    }
    held().recalls += 1;
    let _recall = Recall;
    drop(CHANGED.wait_while(held(), |held| held.guards > 0).unwrap_or_else(PoisonError::into_inner));
    change();
}
