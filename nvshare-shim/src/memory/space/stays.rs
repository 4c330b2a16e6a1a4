//! What stays on the device because somebody else holds its physical memory: for good, or for as long as it is lent.

use super::Space;
use crate::memory::extent::{ExtentId, Presence};

/// What is lent to another process: its extents. They stay until [`Space::returned`].
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Lent(Vec<(ExtentId, u64)>);

#[cfg(test)]
impl Lent {
    /// Whether that extent is among them.
    pub(super) fn names(&self, id: ExtentId, extent: &crate::memory::extent::Extent) -> bool {
        self.0.contains(&(id, extent.number))
    }
}

impl Space {
    /// Extents in the range stay on the device from now on, as far as they are there. Whether there are any.
    pub fn keep(&mut self, start: u64, bytes: u64) -> bool {
        let extents = self.in_range(start, bytes);
        for id in &extents {
            self.hold(*id, |kept, _| *kept = true);
        }
        !extents.is_empty()
    }

    /// Extents in the range, which are all on the device, stay there until they are returned as often as they were lent; `None`:
    /// one of them is not there.
    pub fn lend(&mut self, start: u64, bytes: u64) -> Option<Lent> {
        let extents = self.in_range(start, bytes);
        if extents.iter().any(|id| self.extent(*id).presence() != Presence::Resident) {
            return None;
        }
        let lend = |id: ExtentId| {
            self.hold(id, |_, lent| *lent += 1);
            (id, self.extent(id).number)
        };
        Some(Lent(extents.into_iter().map(lend).collect()))
    }

    /// Nobody uses what was lent any more. Of what was freed meanwhile nothing is left to do.
    pub fn returned(&mut self, lent: Lent) {
        for (id, number) in lent.0 {
            if self.get(id).is_some_and(|extent| extent.number == number) {
                self.hold(id, |_, lent| *lent -= 1);
            }
        }
    }

    /// Nobody moves what is behind a span, in neither way, until it is let go; `None`: somebody is at it just now. What is missing of
    /// it keeps no gate shut meanwhile: whoever ends it may wait for a kernel that waits for a thread at the gate.
    pub fn fix(&mut self, start: u64) -> Option<Lent> {
        let extents = self.spans.get(&start)?.extents.clone();
        if extents.iter().any(|id| self.extent(*id).is_busy()) {
            return None;
        }
        // What is missing of it is nobody's.
        let span = self.span_mut(start);
        (span.made, span.fixed) = (false, true);
        let missing = span.missing;
        self.accounts.missing -= missing;
        let hold = |id: ExtentId| {
            self.hold(id, |_, lent| *lent += 1);
            (id, self.extent(id).number)
        };
        Some(Lent(extents.into_iter().map(hold).collect()))
    }

    /// See [`Space::fix`].
    pub fn let_go(&mut self, start: u64, fixed: Lent) {
        self.returned(fixed);
        if let Some(span) = self.spans.get_mut(&start)
            && std::mem::take(&mut span.fixed)
        {
            self.accounts.missing += span.missing;
        }
        self.span_is_made(start);
    }

    /// The extents in a range, up to where there are none.
    fn in_range(&self, start: u64, bytes: u64) -> Vec<ExtentId> {
        let (mut found, mut at) = (Vec::new(), start);
        while at < start.saturating_add(bytes.max(1)) {
            let Some(id) = self.at(at) else { break };
            let extent = self.extent(id);
            at = extent.start + extent.bytes;
            found.push(id);
        }
        found
    }

    /// Changes who holds an extent, and the sums.
    fn hold(&mut self, id: ExtentId, change: impl FnOnce(&mut bool, &mut u32)) {
        let extent = self.extent_mut(id);
        let before = extent.stays();
        change(&mut extent.kept, &mut extent.lent);
        let (after, bytes, span) = (extent.stays(), extent.bytes, extent.span);
        for sum in [&mut self.kept, &mut self.spans.get_mut(&span).expect("an extent's span exists").kept] {
            match (before, after) {
                (false, true) => *sum += bytes,
                (true, false) => *sum -= bytes,
                _ => {}
            }
        }
    }

    /// Whether a part of the span at `start` stays.
    pub fn is_kept(&self, start: u64) -> bool {
        self.spans.get(&start).is_some_and(|span| span.kept > 0)
    }

    /// Bytes that stay.
    pub const fn kept(&self) -> u64 {
        self.kept
    }
}
