//! How fast a client is heard. Each message is a wake-up of the one task that serves everybody, so a session is read no
//! faster than this: who says more waits in its own socket, and is neither cut nor forgotten.

use std::time::Duration;

use tokio::time::Instant;

/// Messages a second, on and on. Honest clients say a few; one that swaps out in many groups some hundred.
const RATE: f64 = 2000.0;
/// How many may come at once: what a client says of a thousand devices' worth of buffers.
const BURST: f64 = 4096.0;

/// A bucket of tokens.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { tokens: BURST, at: now }
    }

    /// A message came. How long to wait before the next is read.
    pub(super) fn heard(&mut self, now: Instant) -> Option<Duration> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        self.tokens = (self.tokens + gained).min(BURST) - 1.0;
        self.at = now;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / RATE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_heard_at_once_and_a_flood_at_its_rate() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..BURST as u32 {
            assert_eq!(pace.heard(now), None);
        }
        let began = now;
        for _ in 0..4000 {
            if let Some(pause) = pace.heard(now) {
                now += pause;
            }
        }
        let took = (now - began).as_secs_f64();
        assert!((took - 4000.0 / RATE).abs() < 0.1, "{took}");
        now += Duration::from_secs(10);
        assert_eq!(pace.heard(now), None);
    }
}
