//! An extent's way to the device and back, step by step, and the accounts with it.

use super::Space;
use crate::memory::extent::{ExtentId, Presence};

impl Space {
    /// Absent or swapped -> arriving, if the grant allows: the caller makes memory for it.
    pub fn begin_arrival(&mut self, id: ExtentId) -> bool {
        let bytes = self.extent(id).bytes;
        debug_assert!(matches!(self.extent(id).presence, Presence::Absent | Presence::Swapped));
        if self.accounts.slack() < bytes {
            return false;
        }
        self.extent_mut(id).presence = Presence::Arriving;
        self.accounts.resident += bytes;
        self.check();
        true
    }

    /// Arriving -> absent or swapped: there is no memory behind it (any more); its shadow is as good as before (S6).
    pub fn abandon_arrival(&mut self, id: ExtentId) {
        let extent = self.extent_mut(id);
        debug_assert!(extent.presence == Presence::Arriving);
        extent.presence = if extent.contents { Presence::Swapped } else { Presence::Absent };
        (extent.handle, extent.at_home) = (0, false);
        self.accounts.resident -= self.extent(id).bytes;
    }

    /// Arriving -> resident: its bytes are there, as the shadow has them.
    pub fn finish_arrival(&mut self, id: ExtentId, openings: Option<u64>) {
        let extent = self.extent_mut(id);
        debug_assert!(extent.presence == Presence::Arriving && extent.handle != 0);
        extent.presence = Presence::Resident;
        extent.arrived = openings;
        self.is_there(id);
    }

    /// Resident -> leaving. The gate is closed and everything submitted is finished (S2).
    pub fn begin_departure(&mut self, id: ExtentId) {
        let extent = self.extent_mut(id);
        debug_assert!(extent.presence == Presence::Resident);
        extent.presence = Presence::Leaving;
        let (bytes, span) = (extent.bytes, extent.span);
        self.accounts.missing += bytes;
        self.span_mut(span).missing += bytes;
    }

    /// Leaving -> resident: the swap-out failed, the memory is still there (S6).
    pub fn abandon_departure(&mut self, id: ExtentId) {
        let extent = self.extent_mut(id);
        debug_assert!(extent.presence == Presence::Leaving && extent.handle != 0);
        extent.presence = Presence::Resident;
        self.is_there(id);
    }

    /// Leaving -> swapped (or absent, if it never had contents): the memory is released. The grant shrinks with it.
    pub fn finish_departure(&mut self, id: ExtentId) -> u64 {
        let extent = self.extent_mut(id);
        debug_assert!(extent.presence == Presence::Leaving);
        debug_assert!(!extent.contents || extent.has_whole_shadow(), "S3: released without a shadow");
        extent.presence = if extent.contents { Presence::Swapped } else { Presence::Absent };
        (extent.handle, extent.at_home) = (0, false);
        let bytes = extent.bytes;
        self.accounts.resident -= bytes;
        if !self.accounts.unlimited {
            debug_assert!(self.accounts.granted >= bytes);
            self.accounts.granted = self.accounts.granted.saturating_sub(bytes);
        }
        bytes
    }

    /// An extent has settled as resident.
    fn is_there(&mut self, id: ExtentId) {
        let extent = self.extent(id);
        let (bytes, span) = (extent.bytes, extent.span);
        self.accounts.missing -= bytes;
        self.span_mut(span).missing -= bytes;
    }

    fn check(&self) {
        let accounts = &self.accounts;
        debug_assert!(
            accounts.unlimited || accounts.resident + accounts.unswappable <= accounts.granted,
            "S1: {accounts:?}"
        );
    }
}
