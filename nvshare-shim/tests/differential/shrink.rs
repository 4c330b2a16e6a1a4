//! Shortening a script that fails: steps are left out as long as it still fails.

use std::time::{Duration, Instant};

use crate::compare::{Difference, Patience, first_difference};
use crate::script::Script;

/// How long it is tried to make a script shorter.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// In all.
    all: Duration,
    /// Of that, kept for a look at what was found with as much patience as the script was given that failed.
    last: Duration,
    /// Until a step hangs, in each attempt: of one that hangs, all others would have no time.
    step: Duration,
}

pub(crate) const LIMITS: Limits =
    Limits { all: Duration::from_secs(90), last: Duration::from_secs(25), step: Duration::from_secs(3) };

/// The shortest script found that still fails, and how.
pub(crate) fn shrunk(script: &Script, difference: Difference, limits: Limits) -> (Script, Difference) {
    let start = Instant::now();
    let (tried, end) = (start + limits.all.saturating_sub(limits.last), start + limits.all);
    let short = shortest(script, Patience { step: limits.step, end: Some(tried) });
    // Where it only took long, or fails no more, the whole script is what is known.
    let found = first_difference(std::slice::from_ref(&short), Patience { end: Some(end), ..Patience::ALL });
    found.map_or_else(|| (script.clone(), difference), |found| (short, found))
}

/// The shortest script that fails when it is given this patience, as far as there is time.
fn shortest(script: &Script, patience: Patience) -> Script {
    let mut best = script.clone();
    let mut piece = best.ops.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < best.ops.len() {
            if patience.end.is_some_and(|end| Instant::now() > end) {
                return best;
            }
            let mut shorter = best.clone();
            shorter.ops.drain(from..(from + piece).min(best.ops.len()));
            match first_difference(std::slice::from_ref(&shorter), patience) {
                Some(_) => best = shorter,
                None => from += piece,
            }
        }
        piece /= 2;
    }
    best
}

#[test]
fn a_script_that_hangs_is_shortened_within_the_limit() {
    let text =
        "# 7\nt0 retain c=0 device=0\nt0 set c=0\nt0 module k=0\nt0 spin s=0 ns=3600000000000\nt0 ctx_sync\n";
    let script = Script::parse_all(text).expect("a script").remove(0);
    let (one, millis) = (std::slice::from_ref(&script), Duration::from_millis);
    let hangs = first_difference(one, Patience { step: millis(2000), end: None }).expect("a difference");
    assert_eq!(hangs.what, "the bare run hangs, after t0 ctx_sync");
    let cut = Patience { end: Some(Instant::now() + millis(500)), ..Patience::ALL };
    assert!(first_difference(one, cut).is_none(), "nothing is known of it");

    let (start, limits) =
        (Instant::now(), Limits { all: millis(3000), last: millis(1000), step: millis(500) });
    let (short, _) = shrunk(&script, hangs, limits);
    // Processes are started and ended beyond it, on a machine that may be busy.
    assert!(start.elapsed() < millis(9000), "{:?}", start.elapsed());
    assert_eq!(short, script, "there was no time to see that a shorter one hangs");
}
