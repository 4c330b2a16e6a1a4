//! Shortening a script that fails: steps are left out as long as it still fails.

use std::time::{Duration, Instant};

use crate::compare::{Difference, first_difference};
use crate::script::Script;

/// How long it is tried to make a script shorter.
const LIMIT: Duration = Duration::from_secs(90);

/// The shortest script found that still fails, and how.
pub(crate) fn shrunk(script: &Script, difference: Difference) -> (Script, Difference) {
    let end = Instant::now() + LIMIT;
    let (mut best, mut difference) = (script.clone(), difference);
    let mut piece = best.ops.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < best.ops.len() {
            if Instant::now() > end {
                return (best, difference);
            }
            let mut shorter = best.clone();
            shorter.ops.drain(from..(from + piece).min(best.ops.len()));
            match first_difference(std::slice::from_ref(&shorter)) {
                Some(found) => (best, difference) = (shorter, found),
                None => from += piece,
            }
        }
        piece /= 2;
    }
    (best, difference)
}
