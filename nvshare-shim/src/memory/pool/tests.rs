use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const CHUNK: u64 = LARGEST_CHUNK;
const REGION: u64 = 7 * CHUNK;

fn lane(stream: u64) -> Lane {
    Lane { context: 1, stream, thread: 0 }
}

fn pool() -> Pool {
    let mut pool = Pool::new(CHUNK);
    pool.add_region(REGION, 16 * CHUNK);
    pool
}

/// Of what is there, or of chunks more, which come.
fn place(pool: &mut Pool, bytes: u64, lane: Lane) -> Option<(u64, usize)> {
    if let Some(start) = pool.take(bytes, lane) {
        return Some((start, 0));
    }
    let place = pool.find(bytes, lane)?;
    pool.begin(&place);
    pool.filled(&place);
    Some((place.start, place.chunks.len()))
}

#[test]
fn it_grows_at_its_end_by_what_is_missing_there() {
    let mut pool = pool();
    assert_eq!(place(&mut pool, 1, lane(1)), Some((REGION, 1)));
    assert_eq!((pool.used.now, pool.reserved.now), (1, CHUNK));
    assert_eq!(place(&mut pool, 513, lane(1)), Some((REGION + 512, 0)));
    assert_eq!(place(&mut pool, CHUNK, lane(1)), Some((REGION + 1536, 1)), "what is free at the end counts");
    assert_eq!(place(&mut pool, 15 * CHUNK, lane(1)), None, "no room for addresses");
    assert_eq!(pool.reserved, Level { now: 2 * CHUNK, most: 2 * CHUNK });
}

#[test]
fn what_is_freed_is_its_streams_at_once_and_the_others_when_it_is_finished() {
    let mut pool = pool();
    let (start, _) = place(&mut pool, CHUNK, lane(1)).unwrap();
    pool.give(start, CHUNK, Some((lane(1), 5)));
    assert_eq!(pool.lanes(), BTreeSet::from([lane(1)]));
    assert_eq!(pool.take(4096, lane(2)), None);
    assert_eq!(pool.find(4096, lane(2)).unwrap().chunks.len(), 1);
    assert_eq!(pool.take(4096, lane(1)), Some(start));
    assert!(pool.release(0).is_empty(), "its work may run");
    pool.finished(lane(1), 4);
    assert_eq!(pool.take(4096, lane(2)), None, "not that free");
    pool.finished(lane(1), 5);
    assert!(pool.lanes().is_empty());
    assert_eq!(pool.take(4096, lane(2)), Some(start + 4096));
}

#[test]
fn a_stream_that_waits_for_another_follows_it_and_no_third_does() {
    let mut pool = pool();
    let (start, _) = place(&mut pool, CHUNK, lane(1)).unwrap();
    pool.give(start, CHUNK, Some((lane(1), 1)));
    pool.followed(lane(1), 1, (lane(2), 2));
    assert_eq!(pool.take(4096, lane(3)), None);
    assert_eq!(pool.take(4096, lane(1)), None);
    assert_eq!(pool.take(4096, lane(2)), Some(start));
}

#[test]
fn chunks_leave_whole_from_the_end_down_to_what_is_kept() {
    let mut pool = pool();
    let pieces: Vec<u64> = (0..4).map(|_| place(&mut pool, CHUNK, lane(1)).unwrap().0).collect();
    for start in [pieces[0], pieces[2], pieces[3]] {
        pool.give(start, CHUNK, None);
    }
    assert_eq!(pool.release(3 * CHUNK + 1), [pieces[3]]);
    assert!(pool.is_unused(pieces[2]) && !pool.is_unused(pieces[1]) && !pool.is_unused(pieces[3]));
    assert_eq!(pool.find(2 * CHUNK, lane(1)).unwrap().start, pieces[3] + CHUNK, "it is going, not gone");
    assert!(pool.gone(pieces[3]) && !pool.gone(pieces[3]));
    let found = pool.find(2 * CHUNK, lane(1)).unwrap();
    assert_eq!((found.start, found.chunks.as_slice()), (pieces[2], &[pieces[3]][..]));
    assert_eq!(pool.release(0), [pieces[2], pieces[0]]);
    assert_eq!(pool.reserved.now, CHUNK);
}

#[test]
fn what_does_not_come_leaves_everything_as_it_was() {
    let mut pool = pool();
    let (first, _) = place(&mut pool, CHUNK / 2, lane(1)).unwrap();
    let before = (pool.used, pool.reserved.now);
    let found = pool.find(3 * CHUNK, lane(1)).unwrap();
    assert_eq!((found.start, found.chunks.len()), (first + CHUNK / 2, 3));
    pool.begin(&found);
    assert_eq!(pool.take(4096, lane(1)), None, "what it waits for is nobody else's");
    // One has come, one is on its way back, one never was.
    pool.abandoned(&found, Some((lane(1), 1)), 1, |chunk| chunk == found.chunks[1]);
    assert_eq!((pool.used.now, pool.reserved.now), (before.0.now, before.1 + CHUNK));
    assert!(pool.is_unused(found.chunks[0]));
    assert_eq!(pool.find(3 * CHUNK, lane(1)).unwrap().start, found.chunks[2], "not over what is leaving");
    pool.gone(found.chunks[1]);
    assert_eq!(pool.find(3 * CHUNK, lane(1)).unwrap().start, first + CHUNK / 2);
}

#[test]
fn a_chunk_that_came_in_vain_is_nobody_elses_before_its_place_is_given_up() {
    let mut pool = pool();
    let found = pool.find(2 * CHUNK, lane(1)).unwrap();
    pool.begin(&found);
    // The driver refused a part of it, and what had come is taken apart.
    assert!(pool.gone(found.chunks[1]));
    let other = pool.find(CHUNK, lane(2)).unwrap();
    assert_eq!(other.start, REGION + 2 * CHUNK);
    pool.begin(&other);
    pool.filled(&other);
    // Whoever looked for what the engine still has to take apart may have looked before it did.
    pool.abandoned(&found, Some((lane(1), 1)), 0, |chunk| chunk == found.chunks[1]);
    assert!(!pool.is_unused(other.start) && pool.release(0).is_empty());
    assert_eq!(pool.find(2 * CHUNK, lane(1)).unwrap(), found, "nothing is left of it");
}

#[test]
fn nothing_holds_more_bytes_than_can_be_counted() {
    let mut pool = pool();
    let (start, _) = place(&mut pool, CHUNK, lane(1)).unwrap();
    pool.give(start, CHUNK, None);
    for bytes in [u64::MAX, u64::MAX - 510] {
        assert_eq!(pool.take(bytes, lane(1)), None);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(u64, u64),
    Give(usize, Option<u64>),
    Finish(u64),
    Follow(u64, u64),
    Release(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![1_u64..5000, (1_u64..80).prop_map(|mib| mib << 20)];
    let step = prop_oneof![
        4 => (bytes, 1_u64..4).prop_map(|(bytes, lane)| Step::Take(bytes, lane)),
        4 => (any::<usize>(), proptest::option::weighted(0.8, 1_u64..4)).prop_map(|(which, lane)| Step::Give(which, lane)),
        1 => (1_u64..4).prop_map(Step::Finish),
        1 => (1_u64..4, 1_u64..4).prop_map(|(from, to)| Step::Follow(from, to)),
        1 => (0_u64..8).prop_map(Step::Release),
    ];
    proptest::collection::vec(step, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]
    /// Against a map of what was freed where: nobody gets what another stream may still use, or what somebody has, and every figure
    /// is what it says.
    #[test]
    fn nobody_gets_what_is_used_or_not_his(steps in steps()) {
        let mut pool = pool();
        let mut live: Vec<(u64, u64)> = Vec::new();
        // Ranges freed and not known to be finished, by start: length and lane.
        let mut freed: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut here: BTreeSet<u64> = BTreeSet::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Take(bytes, by) => {
                    let Some((start, _)) = place(&mut pool, bytes, lane(by)) else { continue };
                    let end = start + taken(bytes);
                    prop_assert!(live.iter().all(|(other, have)| end <= *other || other + taken(*have) <= start));
                    for (other, (length, owner)) in &freed {
                        prop_assert!(end <= *other || other + length <= start || *owner == by, "freed by {owner}, had by {by}");
                    }
                    here.extend((start / CHUNK * CHUNK..end).step_by(CHUNK as usize));
                    live.push((start, bytes));
                    // What it covers is its own now.
                    let parts: Vec<_> = freed.iter().map(|(other, what)| (*other, *what)).collect();
                    for (other, (length, owner)) in parts {
                        let stop = other + length;
                        if other < end && start < stop {
                            freed.remove(&other);
                            if other < start {
                                freed.insert(other, (start - other, owner));
                            }
                            if stop > end {
                                freed.insert(end, (stop - end, owner));
                            }
                        }
                    }
                }
                Step::Give(which, by) => {
                    if live.is_empty() {
                        continue;
                    }
                    let (start, bytes) = live.swap_remove(which % live.len());
                    number += 1;
                    pool.give(start, bytes, by.map(|by| (lane(by), number)));
                    if let Some(by) = by {
                        freed.insert(start, (taken(bytes), by));
                    }
                }
                Step::Finish(by) => {
                    pool.finished(lane(by), number);
                    freed.retain(|_, (_, owner)| *owner != by);
                }
                Step::Follow(from, to) => {
                    number += 1;
                    pool.followed(lane(from), number - 1, (lane(to), number));
                    for (_, owner) in freed.values_mut().filter(|(_, owner)| *owner == from) {
                        *owner = to;
                    }
                }
                Step::Release(keep) => {
                    for chunk in pool.release(keep * CHUNK) {
                        prop_assert!(here.remove(&chunk));
                        prop_assert!(live.iter().all(|(start, bytes)| start + bytes <= chunk || chunk + CHUNK <= *start));
                        prop_assert!(freed.iter().all(|(start, (length, _))| start + length <= chunk || chunk + CHUNK <= *start));
                        pool.gone(chunk);
                    }
                }
            }
            prop_assert_eq!(pool.reserved.now, here.len() as u64 * CHUNK);
            prop_assert_eq!(pool.used.now, live.iter().map(|(_, bytes)| bytes).sum::<u64>());
            prop_assert_eq!(pool.pieces, live.len() as u64);
            let whole: u64 = live.iter().map(|(_, bytes)| taken(*bytes)).sum();
            prop_assert_eq!(pool.free.values().map(|free| free.bytes).sum::<u64>(), pool.reserved.now - whole);
            prop_assert_eq!(pool.free.len(), pool.by_length.len());
            let idle = here.iter().filter(|chunk| live.iter().all(|(start, bytes)| start + taken(*bytes) <= **chunk || *chunk + CHUNK <= *start));
            prop_assert!(idle.eq(&pool.idle));
        }
    }
}
