//! What this process is told of the size of its devices, by whatever it asks: the driver or NVML, with or without a context.
//!
//! The size is fixed by the first answer and stays the same for the life of the process, whatever is ordered later. What is
//! called free may shrink as others come to hold memory for good, and does not grow when they go, for as long as anybody can
//! compare: programs take a difference of two such figures for what they have taken themselves.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvshare_common::ids::DeviceId;

/// After so long without a question nobody compares any more.
const REMEMBERED: Duration = Duration::from_mins(10);
/// A limit that is lower counts as soon as it has been so for so long: a few readings of the device.
const SETTLED: Duration = Duration::from_millis(500);

/// What is known of one device.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The size by the agent's word.
    size: Option<u64>,
    /// The most this process can hold, by the agent's last word.
    limit: Option<u64>,
    /// What it was before it fell, and when that was: what is told too low for a moment would be told for long.
    fell: Option<(u64, Instant)>,
    /// The most that answers may be: fixed by the first one.
    fixed: Option<u64>,
    /// The least limit that an answer was made of, and when the last one was.
    least: Option<(u64, Instant)>,
}

impl Told {
    fn total(&mut self, bare: u64) -> u64 {
        // Without a word from the agent the device is what it is, and stays so.
        let fixed = *self.fixed.get_or_insert(self.size.unwrap_or(u64::MAX));
        fixed.min(bare)
    }

    fn limited(&mut self, limit: u64, now: Instant) {
        let before = self.believed(now).unwrap_or(limit);
        self.limit = Some(limit);
        if limit >= before {
            self.fell = None;
        } else if self.fell.is_none_or(|(_, at)| now.saturating_duration_since(at) >= SETTLED) {
            self.fell = Some((before, now));
        }
    }

    /// The limit that free memory is told by.
    fn believed(&self, now: Instant) -> Option<u64> {
        match self.fell {
            Some((before, at)) if now.saturating_duration_since(at) < SETTLED => Some(before),
            _ => self.limit,
        }
    }

    fn free(&mut self, most: u64, needed: u64, now: Instant) -> Option<u64> {
        let limit = self.believed(now)?.min(most);
        let least = match self.least {
            Some((least, at)) if now.saturating_duration_since(at) < REMEMBERED => least.min(limit),
            _ => limit,
        };
        self.least = Some((least, now));
        Some(least.saturating_sub(needed))
    }
}

fn told() -> MutexGuard<'static, BTreeMap<DeviceId, Told>> {
    static TOLD: Mutex<BTreeMap<DeviceId, Told>> = Mutex::new(BTreeMap::new());
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent says how large the device is to this client.
pub(crate) fn sized(device: DeviceId, bytes: u64) {
    let mut told = told();
    let told = told.entry(device).or_default();
    if told.size.replace(bytes).is_some_and(|before| before != bytes) {
        // That is an order, and no neighbour's coming or going.
        told.least = None;
    }
}

/// The agent says how much this client can hold there.
pub(crate) fn limited(device: DeviceId, bytes: u64) {
    told().entry(device).or_default().limited(bytes, Instant::now());
}

/// The agent does not manage the device: from now on the driver says how much there is.
pub(crate) fn unlimited(device: DeviceId) {
    if let Some(told) = told().get_mut(&device) {
        (told.size, told.limit, told.fell) = (None, None, None);
    }
}

/// Whether the agent has said how much this client can hold there.
pub(crate) fn is_limited(device: DeviceId) -> bool {
    told().get(&device).is_some_and(|told| told.limit.is_some())
}

/// The size of a device that has `bare` bytes, as this process may know it.
pub(crate) fn total(device: DeviceId, bare: u64) -> u64 {
    told().entry(device).or_default().total(bare)
}

/// The last limit comes from a look that was taken for a change that is known to be ours: a context.
pub(crate) fn is_settled(device: DeviceId) {
    told().entry(device).or_default().fell = None;
}

/// Size and free memory of a device for which the agent set terms, to somebody who sees `bare` bytes of it; `needed` says what this
/// process needs there.
pub(crate) fn figures(device: DeviceId, bare: u64, needed: u64) -> Option<(u64, u64)> {
    let mut told = told();
    let told = told.get_mut(&device)?;
    let total = told.total(bare);
    Some((total, told.free(total, needed, Instant::now())?))
}

/// A context of this process ended: what it gave back is free again.
pub(crate) fn own_end() {
    for told in told().values_mut() {
        told.least = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_fixed_by_the_first_answer() {
        let mut told = Told { size: Some(100), ..Told::default() };
        assert_eq!(told.total(500), 100);
        told.size = Some(50);
        assert_eq!((told.total(500), told.total(90)), (100, 90));
        let mut free = Told::default();
        assert_eq!(free.total(500), 500);
        free.size = Some(50);
        assert_eq!(free.total(500), 500, "an order does not change what was said");
    }

    #[test]
    fn free_memory_does_not_grow_by_what_others_give_back_until_nobody_compares() {
        let mut told = Told::default();
        let (now, later) = (Instant::now(), Instant::now() + SETTLED);
        assert_eq!(told.free(1000, 100, now), None);
        told.limited(800, now);
        assert_eq!(told.free(1000, 100, now), Some(700));
        told.limited(900, now);
        assert_eq!(told.free(1000, 100, now), Some(700));
        assert_eq!(told.free(1000, 50, later), Some(750), "what it gives back itself is free");
        told.limited(700, now);
        assert_eq!(told.free(1000, 100, later), Some(600));
        told.limited(900, later);
        assert_eq!(told.free(1000, 100, later + REMEMBERED), Some(800));
        assert_eq!(told.free(10, 50, later + REMEMBERED), Some(0));
    }

    #[test]
    fn a_limit_that_is_lower_for_a_moment_is_not_told() {
        let mut told = Told::default();
        let now = Instant::now();
        told.limited(900, now);
        told.limited(600, now);
        told.limited(500, now + SETTLED / 2);
        assert_eq!(told.free(1000, 0, now + SETTLED / 2), Some(900));
        told.limited(900, now + SETTLED / 2);
        assert_eq!(told.free(1000, 0, now + SETTLED), Some(900));
        told.limited(600, now + SETTLED);
        assert_eq!(told.free(1000, 0, now + 2 * SETTLED), Some(600));
    }
}
