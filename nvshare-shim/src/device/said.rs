//! What the agent was told of memory that cannot be moved: when it has changed by 1/64 of the device, or else every 100 ms.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A change of less is said with the next one, or when so much time has passed.
const PART: u64 = 64;
const PAUSE: Duration = Duration::from_millis(100);

/// What the agent was told of one device, and when.
#[derive(Debug, Default)]
pub struct Said {
    /// By reason.
    pub(crate) bytes: BTreeMap<&'static str, u64>,
    pub(crate) at: Option<Instant>,
}

impl Said {
    /// Whether it is time to say `now_held`.
    pub(crate) fn is_due(
        &self,
        now_held: &BTreeMap<&'static str, u64>,
        device_total: u64,
        now: Instant,
    ) -> bool {
        let differs = now_held
            .iter()
            .map(|(reason, bytes)| bytes.abs_diff(self.bytes.get(reason).copied().unwrap_or_default()));
        let differs: u64 = differs.sum();
        differs >= (device_total / PART).max(1)
            || (differs > 0 && self.at.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_are_said_together_and_large_ones_at_once() {
        let now = Instant::now();
        let held = |bytes| BTreeMap::from([("array", bytes)]);
        let said = Said { bytes: held(100), at: Some(now) };
        assert!(!said.is_due(&held(100), 6400, now + 2 * PAUSE), "nothing changed");
        assert!(!said.is_due(&held(150), 6400, now));
        assert!(said.is_due(&held(150), 6400, now + PAUSE));
        assert!(said.is_due(&held(200), 6400, now));
        assert!(said.is_due(&held(0), 6400, now), "also when it is less");
        assert!(Said::default().is_due(&held(1), 6400, now), "the first word");
    }
}
