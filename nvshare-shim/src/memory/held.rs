//! What the application took through the driver by a handle of its own and the engine cannot move: managed memory and arrays.
//! Each entry names its device, its bytes and its context, and goes with the first of its own end and its context's: books are
//! kept by lifetime, not by call. (Physical handles: [`super::physical`]; pools and graphs: `allocation::pools`.)

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cuda::sys;

/// What is held under one handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The device, as the driver numbers it.
    pub device: sys::CUdevice,
    /// How much.
    pub bytes: u64,
    /// The context whose end is its end.
    pub context: usize,
}

/// By reason and handle.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<(&'static str, u64), Held>);

impl Table {
    const fn new() -> Table {
        Table(BTreeMap::new())
    }

    /// Adds an entry. Returns the one that it replaces: the driver uses the handle again, and nobody said that it was free.
    pub fn add(&mut self, reason: &'static str, handle: u64, held: Held) -> Option<Held> {
        self.0.insert((reason, handle), held)
    }

    /// Takes one out.
    pub fn remove(&mut self, reason: &'static str, handle: u64) -> Option<Held> {
        self.0.remove(&(reason, handle))
    }

    /// Takes out what belongs to a context.
    pub fn end_of(&mut self, context: usize) -> Vec<(&'static str, Held)> {
        let gone = self.0.extract_if(.., |_, held| held.context == context);
        gone.map(|((reason, _), held)| (reason, held)).collect()
    }

    /// What belongs to a context belongs to another one from now on.
    pub fn inherit(&mut self, context: usize, heir: usize) {
        for held in self.0.values_mut().filter(|held| held.context == context) {
            held.context = heir;
        }
    }
}

/// All of the process.
pub(crate) fn table() -> MutexGuard<'static, Table> {
    static TABLE: Mutex<Table> = Mutex::new(Table::new());
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_context_takes_what_was_made_in_it_and_nothing_else() {
        let mut table = Table::default();
        let held = |context| Held { device: 0, bytes: 10, context };
        assert_eq!(table.add("array", 1, held(7)), None);
        assert_eq!(table.add("managed", 1, held(8)), None);
        assert_eq!(table.add("managed", 2, held(7)), None);
        assert_eq!(table.end_of(7), [("array", held(7)), ("managed", held(7))]);
        assert_eq!(table.end_of(7), []);
        table.add("array", 3, held(7));
        table.inherit(7, 8);
        assert_eq!(table.end_of(7), []);
        assert_eq!(table.remove("array", 3), Some(held(8)));
        assert_eq!(table.remove("managed", 1), Some(held(8)));
        assert_eq!(table.remove("managed", 1), None);
    }

    #[test]
    fn a_handle_that_is_used_again_counts_once() {
        let mut table = Table::default();
        let held = |bytes| Held { device: 1, bytes, context: 3 };
        table.add("array", 5, held(10));
        assert_eq!(table.add("array", 5, held(20)), Some(held(10)));
        assert_eq!(table.end_of(3), [("array", held(20))]);
    }
}
