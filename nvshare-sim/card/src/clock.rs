//! The clocks of a card: what its link (each way) and its processors are busy with, shared by all processes.
//!
//! Work reserves a piece of time, is done for real, and then sleeps until its time is over, so that processes contend
//! for the simulated card and not for the machine's memory bandwidth.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::Config;

/// Long transfers reserve the link in pieces of this size, so that two of them share it.
const PIECE_BYTES: u64 = 4 << 20;

/// A transfer that fell behind its reservations (the machine was busy) may catch up this much.
const CATCH_UP_NANOSECONDS: u64 = 20_000_000;

/// What can be busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The link, host to device.
    ToDevice,
    /// The link, device to host.
    ToHost,
    /// The processors, and copies within the device.
    Compute,
}

/// Bytes that crossed the link since the card was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// By copies, host to device.
    pub to_device: u64,
    /// By copies, device to host.
    pub to_host: u64,
    /// By faults and prefetches of managed memory, host to device.
    pub faulted_in: u64,
    /// Managed memory that left the card: evicted, or fetched by the host.
    pub evicted: u64,
}

/// One card's clocks and counters in the control block: nanoseconds of CLOCK_MONOTONIC until which each is busy.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Clocks {
    busy: [AtomicU64; 3],
    pub(crate) traffic: [AtomicU64; 4],
}

impl Clocks {
    pub(crate) fn traffic(&self) -> Traffic {
        let [to_device, to_host, faulted_in, evicted] =
            [0, 1, 2, 3].map(|index: usize| self.traffic[index].load(Ordering::Relaxed));
        Traffic { to_device, to_host, faulted_in, evicted }
    }

    pub(crate) fn count(&self, index: usize, bytes: u64) {
        self.traffic[index].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reserves the lane from `earliest` on; returns the end of the reservation.
    fn reserve(&self, config: &Config, lane: Lane, earliest: u64, nanoseconds: u64) -> u64 {
        let index = match lane {
            Lane::ToHost if config.duplex == 0 => Lane::ToDevice as usize,
            lane => lane as usize,
        };
        let end_after = |busy: u64| busy.max(earliest) + nanoseconds;
        self.busy[index]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(end_after(busy)))
            .map_or(earliest, end_after)
    }

    /// Does `work` for each piece of a transfer and returns when the lane has had the time for `bytes * slowdown`.
    pub(crate) fn transfer(
        &self,
        config: &Config,
        lane: Lane,
        bytes: u64,
        slowdown: u64,
        mut work: impl FnMut(Range<u64>),
    ) {
        let (rate, latency) = match lane {
            Lane::Compute => (config.device_bytes_per_second, 0),
            Lane::ToDevice | Lane::ToHost => (config.link_bytes_per_second, config.link_latency_nanoseconds),
        };
        let (mut at, mut end) = (0, now());
        loop {
            let piece = at..bytes.min(at + PIECE_BYTES);
            // The time between two pieces is not lost: the next one starts where the last one ended.
            let earliest = end.max(now().saturating_sub(CATCH_UP_NANOSECONDS));
            at = piece.end;
            end = self.reserve(config, lane, earliest, duration(piece.end - piece.start, rate, slowdown));
            work(piece);
            if at == bytes {
                break;
            }
            sleep_until(end);
        }
        sleep_until(end + latency);
    }
}

fn duration(bytes: u64, rate: u64, slowdown: u64) -> u64 {
    (u128::from(bytes) * u128::from(slowdown) * 1_000_000_000 / u128::from(rate)) as u64
}

/// Nanoseconds of CLOCK_MONOTONIC, the same in every process.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps until `end` of [`now`]; the last microseconds are spent spinning, as a sleep may overshoot by so much.
pub fn sleep_until(end: u64) {
    const OVERSHOOT: u64 = 60_000;
    loop {
        let left = end.saturating_sub(now());
        if left == 0 {
            return;
        }
        if left > OVERSHOOT {
            std::thread::sleep(Duration::from_nanos(left - OVERSHOOT));
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: fn() -> Config = || Config { link_latency_nanoseconds: 0, ..Config::default() };

    #[test]
    fn reservations_queue_behind_one_another() {
        let clocks = Clocks::default();
        assert_eq!(clocks.reserve(&CONFIG(), Lane::ToDevice, 100, 50), 150);
        assert_eq!(clocks.reserve(&CONFIG(), Lane::ToDevice, 100, 50), 200);
        assert_eq!(clocks.reserve(&CONFIG(), Lane::ToDevice, 500, 50), 550);
    }

    #[test]
    fn the_two_ways_of_the_link_are_apart_only_where_it_is_duplex() {
        let clocks = Clocks::default();
        assert_eq!(clocks.reserve(&CONFIG(), Lane::ToDevice, 100, 50), 150);
        assert_eq!(clocks.reserve(&CONFIG(), Lane::ToHost, 100, 50), 150);
        let half = Config { duplex: 0, ..CONFIG() };
        assert_eq!(clocks.reserve(&half, Lane::ToHost, 100, 50), 200);
    }

    #[test]
    fn a_transfer_covers_every_byte_once_and_takes_the_links_time() {
        let (clocks, start) = (Clocks::default(), now());
        let mut next = 0;
        clocks.transfer(&CONFIG(), Lane::ToHost, 20_000_000, 1, |piece| {
            assert_eq!(piece.start, next);
            next = piece.end;
        });
        assert_eq!(next, 20_000_000);
        let took = now() - start;
        assert!((20_000_000..2_000_000_000).contains(&took), "{took} ns at 1 GB/s");
    }

    #[test]
    fn an_empty_transfer_ends_at_once() {
        let mut calls = 0;
        Clocks::default().transfer(&CONFIG(), Lane::Compute, 0, 1, |_| calls += 1);
        assert_eq!(calls, 1);
    }
}
