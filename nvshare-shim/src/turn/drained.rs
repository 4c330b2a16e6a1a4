//! The proof that is needed to let memory leave: only a drain makes one.

/// Proof that nothing of the application ran when it was made; while the gate stays shut nothing does.
#[must_use]
#[derive(Debug)]
pub struct Drained(());

impl Drained {
    /// Nothing runs, by what a drain has seen.
    pub(super) const fn now() -> Drained {
        Drained(())
    }
}
