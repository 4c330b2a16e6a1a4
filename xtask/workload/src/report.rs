//! What the workload says at the end.

use std::time::Duration;

use serde::Serialize;

/// The report; times in seconds.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    pub(crate) device: String,
    /// All memory of the device, as `cuMemGetInfo` says it at the start.
    pub(crate) device_bytes: u64,
    pub(crate) bytes: u64,
    pub(crate) buffers: u64,
    pub(crate) iterations: u64,
    /// From the first call of the driver to the last verification.
    pub(crate) seconds: f64,
    /// Of it: allocating and filling.
    pub(crate) fill_seconds: f64,
    /// Bytes that kernels went over, per second.
    pub(crate) bytes_per_second: f64,
    /// A step computes over all of the memory once.
    pub(crate) steps: Times,
    /// Steps that were the first ones after this process got the lock from another one.
    pub(crate) first_steps: Times,
    /// How often it took the lock, and how often from another process.
    pub(crate) turns: u64,
    pub(crate) switches: u64,
    pub(crate) data_errors: u64,
}

/// How long something took.
#[derive(Serialize, Debug, Default, PartialEq)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) fastest: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) slowest: f64,
}

impl Times {
    pub(crate) fn of(times: &[Duration]) -> Times {
        let mut seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * seconds.len() as f64).ceil() as usize;
            seconds.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Times {
            count: seconds.len() as u64,
            fastest: at(0.0),
            median: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            slowest: seconds.last().copied().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "median {:.3} s, 90 % {:.3} s, 99 % {:.3} s, slowest {:.3} s ({} in all)",
            self.median, self.p90, self.p99, self.slowest, self.count
        )
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {} bytes in {} buffers", self.device, self.bytes, self.buffers)?;
        writeln!(
            f,
            "{} iterations in {:.2} s (filled in {:.2} s), {:.2} GB/s",
            self.iterations,
            self.seconds,
            self.fill_seconds,
            self.bytes_per_second / 1e9
        )?;
        writeln!(f, "steps: {}", self.steps)?;
        if self.turns > 0 {
            writeln!(
                f,
                "{} turns, {} switches, first steps: {}",
                self.turns, self.switches, self.first_steps
            )?;
        }
        write!(f, "data errors: {}", self.data_errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_secs).collect();
        let times = Times::of(&times);
        assert_eq!((times.median, times.p90, times.p99, times.slowest), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(Times::of(&[]), Times::default());
    }
}
