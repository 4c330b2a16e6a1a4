//! The clocks of a card: what its link (each way) and its processors are busy with, shared by all processes.
//!
//! Work reserves time from the moment on when it was ready to begin, is done for real, and then sleeps until its time is
//! over, so that processes contend for the simulated card and not for the machine's memory bandwidth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::Config;

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
    pub(crate) fn reserve(&self, config: &Config, lane: Lane, earliest: u64, nanoseconds: u64) -> u64 {
        let index = match lane {
            Lane::ToHost if config.duplex == 0 => Lane::ToDevice as usize,
            lane => lane as usize,
        };
        let end_after = |busy: u64| busy.max(earliest) + nanoseconds;
        self.busy[index]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| Some(end_after(busy)))
            .map_or(earliest, end_after)
    }

    /// Reserves the time that `bytes` take, `slowdown` times as long as at the lane's full speed.
    pub(crate) fn pass(&self, config: &Config, lane: Lane, earliest: u64, bytes: u64, slowdown: u64) -> u64 {
        let rate = match lane {
            Lane::Compute => config.device_bytes_per_second,
            Lane::ToDevice | Lane::ToHost => config.link_bytes_per_second,
        };
        let time = u128::from(bytes) * u128::from(slowdown) * 1_000_000_000 / u128::from(rate);
        self.reserve(config, lane, earliest, time as u64)
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the same in every process.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps until `end` of [`now`].
pub fn sleep_until(end: u64) {
    loop {
        match end.saturating_sub(now()) {
            0 => return,
            left => std::thread::sleep(Duration::from_nanos(left)),
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
    fn bytes_take_the_time_of_their_lane() {
        let clocks = Clocks::default();
        assert_eq!(clocks.pass(&CONFIG(), Lane::ToHost, 0, 1_000_000, 1), 1_000_000);
        assert_eq!(clocks.pass(&CONFIG(), Lane::ToDevice, 0, 1_000_000, 6), 6_000_000);
        assert_eq!(clocks.pass(&CONFIG(), Lane::Compute, 0, 1_000_000, 1), 250_000);
    }
}
