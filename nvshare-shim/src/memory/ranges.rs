//! Free ranges in regions of a number line: pieces of device addresses in slabs, blocks of host memory in arenas. Pure.
//! Best fit; neighbours join again when given back, never across a region's edge.

use std::collections::{BTreeMap, BTreeSet};

/// Which parts of some regions are free. Regions do not overlap.
#[derive(Debug, Default)]
pub struct Ranges {
    regions: BTreeMap<u64, Region>,
    free: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
}

#[derive(Debug)]
struct Region {
    length: u64,
    used: u64,
}

impl Ranges {
    /// No regions.
    pub const fn new() -> Ranges {
        Ranges { regions: BTreeMap::new(), free: BTreeMap::new(), by_length: BTreeSet::new() }
    }

    /// Adds a region, all of it free.
    pub fn add(&mut self, start: u64, length: u64) {
        debug_assert!(
            length > 0 && self.region(start).is_none() && self.region(start + length - 1).is_none()
        );
        self.regions.insert(start, Region { length, used: 0 });
        self.insert(start, length);
    }

    /// Removes a region of which nothing is taken; says whether it was there and free.
    pub fn remove(&mut self, start: u64) -> bool {
        match self.regions.get(&start) {
            Some(region) if region.used == 0 => {
                let length = region.length;
                self.regions.remove(&start);
                self.cut(start, length);
                true
            }
            _ => false,
        }
    }

    /// Takes exactly `length`, from the smallest free range that holds it.
    pub fn take(&mut self, length: u64) -> Option<u64> {
        let (have, start) = *self.by_length.range((length, 0)..).next()?;
        self.carve(start, have, length);
        Some(start)
    }

    /// Takes `length` in one piece, or else the longest piece there is: its start and its length.
    pub fn take_up_to(&mut self, length: u64) -> Option<(u64, u64)> {
        if let Some(start) = self.take(length) {
            return Some((start, length));
        }
        let (have, start) = *self.by_length.last()?;
        self.carve(start, have, have);
        Some((start, have))
    }

    /// Gives back what was taken, whole or in parts. Returns the start of its region if nothing of that is taken now.
    pub fn give_back(&mut self, start: u64, length: u64) -> Option<u64> {
        let (base, region) = self.regions.range_mut(..=start).next_back().expect("ranges come from a region");
        let (base, end) = (*base, base + region.length);
        debug_assert!(
            length > 0 && start + length <= end && length <= region.used,
            "given back more than was taken"
        );
        region.used -= length;
        let unused = (region.used == 0).then_some(base);
        let (mut start, mut length) = (start, length);
        if let Some((&before, &have)) = self.free.range(..start).next_back()
            && before >= base
        {
            debug_assert!(before + have <= start, "given back twice");
            if before + have == start {
                self.cut(before, have);
                (start, length) = (before, have + length);
            }
        }
        if start + length < end
            && let Some(&have) = self.free.get(&(start + length))
        {
            self.cut(start + length, have);
            length += have;
        }
        self.insert(start, length);
        unused
    }

    /// The region that `at` lies in: its start and length.
    pub fn region(&self, at: u64) -> Option<(u64, u64)> {
        let (start, region) = self.regions.range(..=at).next_back()?;
        (at - start < region.length).then_some((*start, region.length))
    }

    /// The regions of which nothing is taken.
    pub fn unused(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions.iter().filter(|(_, region)| region.used == 0).map(|(start, _)| *start)
    }

    /// The length of all regions together.
    pub fn total(&self) -> u64 {
        self.regions.values().map(|region| region.length).sum()
    }

    /// The length of all free ranges together.
    pub fn free(&self) -> u64 {
        self.regions.values().map(|region| region.length - region.used).sum()
    }

    fn carve(&mut self, start: u64, have: u64, length: u64) {
        self.cut(start, have);
        if have > length {
            self.insert(start + length, have - length);
        }
        let (_, region) = self.regions.range_mut(..=start).next_back().expect("free ranges lie in regions");
        region.used += length;
    }

    fn insert(&mut self, start: u64, length: u64) {
        self.free.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn cut(&mut self, start: u64, length: u64) {
        let had = self.free.remove(&start);
        debug_assert_eq!(had, Some(length));
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbouring_regions_never_join() {
        let mut ranges = Ranges::new();
        ranges.add(0, 10);
        ranges.add(10, 10);
        assert_eq!(ranges.take(11), None);
        let (first, second) = (ranges.take(10).unwrap(), ranges.take(10).unwrap());
        assert_eq!(ranges.take(1), None);
        assert_eq!(ranges.give_back(first, 10), Some(first));
        assert_eq!(ranges.give_back(second, 10), Some(second));
        assert_eq!(ranges.take(11), None);
        assert!(ranges.remove(0) && ranges.remove(10) && !ranges.remove(10));
        assert_eq!(ranges.total(), 0);
    }

    #[test]
    fn what_does_not_fit_in_one_piece_is_given_in_the_longest_there_is() {
        let mut ranges = Ranges::new();
        ranges.add(100, 8);
        ranges.add(200, 16);
        assert_eq!(ranges.take_up_to(20), Some((200, 16)));
        assert_eq!(ranges.take_up_to(20), Some((100, 8)));
        assert_eq!(ranges.take_up_to(20), None);
        assert_eq!(ranges.give_back(204, 4), None);
        assert_eq!(ranges.take_up_to(20), Some((204, 4)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_two_takers_share_and_everything_comes_back(
            regions in proptest::collection::vec(1_u64..64, 1..6),
            steps in proptest::collection::vec((any::<bool>(), 1_u64..40, any::<usize>()), 0..120),
        ) {
            let mut ranges = Ranges::new();
            let mut start = 0;
            for length in &regions {
                ranges.add(start, *length);
                start += length + u64::from(length % 2 == 0);
            }
            let total = ranges.total();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, length, which) in steps {
                if take {
                    if let Some(start) = ranges.take(length) {
                        for &(other, have) in &taken {
                            prop_assert!(start + length <= other || other + have <= start);
                        }
                        let (base, size) = ranges.region(start).unwrap();
                        prop_assert!(start >= base && start + length <= base + size);
                        taken.push((start, length));
                    }
                } else if !taken.is_empty() {
                    let (start, length) = taken.swap_remove(which % taken.len());
                    ranges.give_back(start, length);
                }
                prop_assert_eq!(ranges.free() + taken.iter().map(|(_, length)| length).sum::<u64>(), total);
            }
            for (start, length) in taken {
                ranges.give_back(start, length);
            }
            // Whole regions are free ranges again.
            prop_assert_eq!(ranges.free(), total);
            prop_assert_eq!(ranges.unused().count(), regions.len());
            prop_assert_eq!(ranges.free.len(), regions.len());
            prop_assert_eq!(ranges.by_length.len(), regions.len());
        }
    }
}
