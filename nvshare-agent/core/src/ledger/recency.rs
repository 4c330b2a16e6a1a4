//! Which ranges of a client's memory its kernels used lately, as far as the uprobes saw: a hint for choosing what to swap
//! out first. Wrong or missing recency costs speed only.

use std::collections::BTreeMap;

use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};

use crate::moment::Moment;

/// How many ranges are remembered for one client.
const RANGES: usize = 16_384;

/// Ranges with the time of their last known use.
#[derive(Clone, Debug, Default)]
pub struct Recency {
    ranges: BTreeMap<u64, Range>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    end: u64,
    used: Moment,
}

impl Recency {
    /// Memory appeared. Pieces of one buffer come in order of address and become one range. There is `room` for so many.
    pub(super) fn mapped(&mut self, range: DeviceRange, room: usize, now: Moment) {
        let (start, Some(end)) = (range.start.0, range.start.0.checked_add(range.bytes.0)) else { return };
        let before = self.ranges.range_mut(..=start).next_back();
        if let Some((_, before)) = before
            && before.end >= start
        {
            before.end = before.end.max(end);
            return;
        }
        if self.ranges.len() < RANGES.min(room) {
            self.ranges.insert(start, Range { end, used: now });
        }
    }

    /// The application freed the range that begins here.
    pub(super) fn freed(&mut self, address: DevicePtr) {
        self.ranges.remove(&address.0);
    }

    /// A kernel got these words as parameters: those that point into a range make it hot.
    pub(super) fn launched(&mut self, parameters: &[u64], at: Moment) {
        for address in parameters {
            if let Some((_, range)) = self.ranges.range_mut(..=*address).next_back()
                && *address < range.end
            {
                range.used = range.used.max(at);
            }
        }
    }

    /// How many ranges are known.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// At most `most` ranges, the longest unused first.
    pub fn coldest(&self, most: usize) -> Vec<DeviceRange> {
        let mut all: Vec<_> = self.ranges.iter().collect();
        all.sort_by_key(|(_, range)| range.used);
        let range = |(start, range): (&u64, &Range)| DeviceRange {
            start: DevicePtr(*start),
            bytes: Bytes(range.end - start),
        };
        all.into_iter().take(most).map(range).collect()
    }

    /// Everything known is void.
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, bytes: u64) -> DeviceRange {
        DeviceRange { start: DevicePtr(start), bytes: Bytes(bytes) }
    }

    #[test]
    fn pieces_of_one_buffer_are_one_range_and_the_unused_one_is_coldest() {
        let mut recency = Recency::default();
        recency.mapped(range(1000, 100), RANGES, Moment(1));
        recency.mapped(range(1100, 100), RANGES, Moment(2));
        recency.mapped(range(5000, 100), RANGES, Moment(3));
        recency.launched(&[1150, 7, 9999], Moment(10));
        assert_eq!(recency.coldest(9), [range(5000, 100), range(1000, 200)]);
        assert_eq!(recency.coldest(1), [range(5000, 100)]);
        recency.freed(DevicePtr(5000));
        assert_eq!(recency.coldest(9), [range(1000, 200)]);
    }

    #[test]
    fn a_client_that_maps_without_end_does_not_grow_the_agent() {
        let mut recency = Recency::default();
        for at in 0..2 * RANGES as u64 {
            recency.mapped(range(at * 10, 5), RANGES, Moment(1));
        }
        assert_eq!(recency.coldest(usize::MAX).len(), RANGES);
        recency.mapped(range(u64::MAX, 5), RANGES, Moment(1));
    }
}
