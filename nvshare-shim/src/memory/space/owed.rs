//! Memory that the driver gave back and takes again by itself when the application runs (that of graphs): it is needed, and missing
//! until the grant covers it, as an extent is, but nobody copies it.

use super::Space;

impl Space {
    /// So much was given back.
    pub fn owe(&mut self, bytes: u64) {
        self.owed += bytes;
        self.accounts.total += bytes;
        self.accounts.missing += bytes;
    }

    /// What was given back may be taken again, if the grant allows it: says how much, which is the caller's to book.
    pub fn pay(&mut self) -> Option<u64> {
        if self.owed == 0 || self.accounts.slack() < self.owed {
            return None;
        }
        self.accounts.total -= self.owed;
        self.accounts.missing -= self.owed;
        Some(std::mem::take(&mut self.owed))
    }

    /// What was given back.
    pub const fn owed(&self) -> u64 {
        self.owed
    }
}
