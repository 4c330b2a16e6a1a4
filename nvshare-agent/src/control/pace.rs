//! How fast a client is heard. Each message is a wake-up of the one task that serves everybody, so nobody is read faster than
//! this: who says more waits in its own socket, and is neither cut nor forgotten. Whose the bucket is, is in
//! [`super::connections`]. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What somebody may say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Messages a second, on and on.
    rate: f64,
    /// How many may come at once.
    burst: f64,
}

/// One process, by whatever sessions. Honest clients say a few a second; one that swaps out in many groups some hundred; and
/// at once, what a client says of a thousand devices' worth of buffers.
pub(super) const OF_PROCESS: Allowance = Allowance { rate: 2000.0, burst: 4096.0 };
/// All processes of a cgroup: each new one brings a burst of its own, and processes are cheap to make. That a thousand clients
/// of one container come back after a restart of the agent, each with some dozen messages, is within the burst.
pub(super) const OF_CGROUP: Allowance =
    Allowance { rate: 8.0 * OF_PROCESS.rate, burst: 16.0 * OF_PROCESS.burst };
/// What a connection costs, beside what is said on it: it is looked at who it is, its page is mapped, an account is opened. A
/// client that lost its agent comes back once a second.
pub(super) const CONNECTION: u32 = 16;

/// A bucket of tokens.
#[derive(Debug)]
pub(super) struct Pace {
    of: Allowance,
    tokens: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(of: Allowance, now: Instant) -> Pace {
        Pace { of, tokens: of.burst, at: now }
    }

    fn at(&self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.of.rate;
        (self.tokens + gained).min(self.of.burst)
    }

    /// So much came. How long to wait before more is read, if one must.
    pub(super) fn heard(&mut self, cost: u32, now: Instant) -> Option<Duration> {
        self.tokens = self.at(now) - f64::from(cost);
        self.at = now;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / self.of.rate))
    }

    /// Whether something may come without waiting.
    pub(super) fn has_one(&self, now: Instant) -> bool {
        self.at(now) >= 1.0
    }

    /// Whether it is as one that nothing was taken from: nothing is lost by forgetting it.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.at(now) >= self.of.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_heard_at_once_and_a_flood_at_its_rate() {
        let mut now = Instant::now();
        let mut pace = Pace::new(OF_PROCESS, now);
        for _ in 0..OF_PROCESS.burst as u32 {
            assert_eq!(pace.heard(1, now), None);
        }
        let began = now;
        for _ in 0..4000 {
            now += pace.heard(1, now).unwrap_or_default();
        }
        let took = (now - began).as_secs_f64();
        assert!((took - 4000.0 / OF_PROCESS.rate).abs() < 0.1, "{took}");
        assert!(!pace.is_full(now));
        now += Duration::from_secs(10);
        assert!(pace.is_full(now));
        assert_eq!(pace.heard(1, now), None);
    }
}
