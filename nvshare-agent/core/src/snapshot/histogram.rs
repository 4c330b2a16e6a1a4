//! How long things took.

use serde::{Deserialize, Serialize};

/// A distribution of times, as Prometheus has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending.
    pub bounds: Vec<f64>,
    /// How many were at most as long as each bound (cumulative).
    pub counts: Vec<u64>,
    /// All of them together.
    pub sum: f64,
    /// How many there were.
    pub count: u64,
}

impl Default for Histogram {
    /// From a millisecond to a minute.
    fn default() -> Histogram {
        let bounds =
            vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        Histogram { counts: vec![0; bounds.len()], bounds, sum: 0.0, count: 0 }
    }
}

impl Histogram {
    /// Counts one more.
    pub fn record(&mut self, seconds: f64) {
        for (bound, count) in self.bounds.iter().zip(&mut self.counts) {
            *count += u64::from(seconds <= *bound);
        }
        self.sum += seconds;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative() {
        let mut histogram = Histogram::default();
        histogram.record(0.3);
        histogram.record(100.0);
        assert_eq!((histogram.count, histogram.counts[0], *histogram.counts.last().unwrap()), (2, 0, 1));
    }
}
