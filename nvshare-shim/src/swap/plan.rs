//! Which extents leave when room is asked for. Pure.

use nvshare_common::bytes::DeviceRange;

use crate::memory::extent::ExtentId;

/// A resident extent that could leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub id: ExtentId,
    /// Its first byte.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// How many of its bytes will probably have to be copied.
    pub cost: u64,
}

/// Chooses from `candidates` until `need` bytes are reached or none are left: first what overlaps the agent's hints,
/// coldest first, then the cheapest per byte, then by address. The last one chosen is exchanged for the smallest that is
/// still enough.
pub fn choose(candidates: &[Candidate], coldest: &[DeviceRange], need: u64) -> Vec<Candidate> {
    let hinted = |candidate: &Candidate| {
        coldest.iter().position(|range| {
            let (start, end) = (range.start.0, range.start.0.saturating_add(range.bytes.0));
            start < candidate.start + candidate.bytes && candidate.start < end
        })
    };
    let mut ranked: Vec<_> = candidates
        .iter()
        .map(|candidate| {
            // In 1024ths, so that extents of different lengths compare.
            let cost = candidate.cost * 1024 / candidate.bytes.max(1);
            (hinted(candidate).unwrap_or(usize::MAX), cost, candidate.start, *candidate)
        })
        .collect();
    ranked.sort_unstable_by_key(|(hint, cost, start, _)| (*hint, *cost, *start));
    let mut chosen: Vec<Candidate> = Vec::new();
    let mut reached = 0;
    for (at, (hint, cost, _, candidate)) in ranked.iter().enumerate() {
        if reached >= need {
            break;
        }
        let mut best = *candidate;
        if reached + best.bytes >= need {
            // Among equals of this rank, the smallest that suffices: extents leave whole.
            for (other_hint, other_cost, _, other) in &ranked[at..] {
                let equal = other_hint == hint && other_cost == cost;
                if equal && reached + other.bytes >= need && other.bytes < best.bytes {
                    best = *other;
                }
            }
        }
        reached += best.bytes;
        chosen.push(best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvshare_common::bytes::{Bytes, DevicePtr};
    use proptest::prelude::*;

    fn candidate(id: u32, start: u64, bytes: u64, cost: u64) -> Candidate {
        Candidate { id: ExtentId(id), start, bytes, cost }
    }

    fn ids(chosen: &[Candidate]) -> Vec<u32> {
        chosen.iter().map(|candidate| candidate.id.0).collect()
    }

    #[test]
    fn the_agents_coldest_range_leaves_first_and_the_cheapest_next() {
        let all = [
            candidate(0, 0, 64, 64),
            candidate(1, 64, 64, 0),
            candidate(2, 128, 64, 64),
            candidate(3, 192, 64, 32),
        ];
        let hint = [DeviceRange { start: DevicePtr(150), bytes: Bytes(10) }];
        assert_eq!(ids(&choose(&all, &hint, 192)), [2, 1, 3]);
        assert_eq!(ids(&choose(&all, &[], 64)), [1]);
    }

    #[test]
    fn the_last_one_is_no_larger_than_needed() {
        let all = [candidate(0, 0, 64, 64), candidate(1, 64, 64, 64), candidate(2, 128, 4, 4)];
        assert_eq!(ids(&choose(&all, &[], 68)), [0, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn enough_is_chosen_where_there_is_enough_and_nothing_twice(
            sizes in proptest::collection::vec((1_u64..64, 0_u64..64), 0..40),
            hints in proptest::collection::vec((0_u64..2000, 1_u64..200), 0..5),
            need in 0_u64..3000,
        ) {
            let mut start = 0;
            let all: Vec<Candidate> = sizes.iter().enumerate().map(|(index, (bytes, cost))| {
                start += bytes;
                candidate(index as u32, start - bytes, *bytes, (*cost).min(*bytes))
            }).collect();
            let hints: Vec<DeviceRange> =
                hints.iter().map(|(start, bytes)| DeviceRange { start: DevicePtr(*start), bytes: Bytes(*bytes) }).collect();
            let chosen = choose(&all, &hints, need);
            let reached: u64 = chosen.iter().map(|candidate| candidate.bytes).sum();
            let total: u64 = all.iter().map(|candidate| candidate.bytes).sum();
            prop_assert!(reached >= need.min(total));
            let mut seen = ids(&chosen);
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), chosen.len());
            // Nothing could be left out at the end.
            if let Some(last) = chosen.last() {
                prop_assert!(reached - last.bytes < need);
            }
        }
    }
}
