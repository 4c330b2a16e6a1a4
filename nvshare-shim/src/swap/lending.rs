//! Who copies between arenas and a device just now. Every engine uses every arena, and each arena is pinned in the context
//! of one of them. An engine that leaves its context unpins what is pinned there: before that it recalls the arenas, and
//! the others finish what is under way and begin nothing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct Lent {
    borrowers: usize,
    recalls: usize,
}

static LENT: Mutex<Lent> = Mutex::new(Lent { borrowers: 0, recalls: 0 });
static CHANGED: Condvar = Condvar::new();

fn lent() -> MutexGuard<'static, Lent> {
    LENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, every arena stays as it is pinned. An engine has one while copies of its own are under way.
#[derive(Debug)]
pub struct Loan(());

impl Drop for Loan {
    fn drop(&mut self) {
        lent().borrowers -= 1;
        CHANGED.notify_all();
    }
}

/// Waits out a recall. The calling engine has no loan.
pub fn borrow() -> Loan {
    let mut lent =
        CHANGED.wait_while(lent(), |lent| lent.recalls > 0).unwrap_or_else(PoisonError::into_inner);
    lent.borrowers += 1;
    Loan(())
}

/// Whether an engine may begin another copy under its `loan`, which it takes if it has none. Not during a recall: then it
/// finishes what is under way, gives the loan back, and is woken afterwards.
pub fn may_begin(loan: &mut Option<Loan>) -> bool {
    let mut lent = lent();
    if lent.recalls > 0 {
        return false;
    }
    loan.get_or_insert_with(|| {
        lent.borrowers += 1;
        Loan(())
    });
    true
}

/// Does something to arenas that no copy may be under way for. The calling engine has no loan.
pub fn recalled(change: impl FnOnce()) {
    /// Ends the recall, whatever happens.
    struct Recall;
    impl Drop for Recall {
        fn drop(&mut self) {
            lent().recalls -= 1;
            CHANGED.notify_all();
        }
    }
    lent().recalls += 1;
    let _recall = Recall;
    drop(CHANGED.wait_while(lent(), |lent| lent.borrowers > 0).unwrap_or_else(PoisonError::into_inner));
    change();
}
