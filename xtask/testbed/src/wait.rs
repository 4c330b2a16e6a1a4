//! Waiting for a condition, with a limit.

use std::time::{Duration, Instant};

/// Asks every 10 ms until `condition` gives a value.
///
/// # Panics
/// With `what` in the message when `limit` has passed.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
