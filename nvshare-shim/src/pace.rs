//! Pacing: while somebody else waits for the card, launches wait now and then for what they submitted, so that the next
//! drain does not have to wait for a queue of a thousand kernels.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cuda::sys::CUstream;
use crate::streams;

/// How much work may be in flight, by the time it takes.
const IN_FLIGHT: Duration = Duration::from_millis(10);
/// How long a thread waits at most: what it submitted may itself wait for what the thread does next.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many launches may be in flight at most, however short they are.
const MOST_LAUNCHES: u32 = 256;

static ON: AtomicBool = AtomicBool::new(false);

thread_local! {
    static PACE: Pace = const { Pace { since_wait: Cell::new(0), batch: Cell::new(8), in_vain: Cell::new(1) } };
}

struct Pace {
    /// Launches since the last wait.
    since_wait: Cell<u32>,
    /// How many launches to let go between waits.
    batch: Cell<u32>,
    /// How many launches go unpaced after the next wait in vain.
    in_vain: Cell<u32>,
}

/// Turns pacing on or off.
pub fn set(on: bool) {
    ON.store(on, Ordering::Release);
}

/// A launch into `stream` was made; the calling thread is outside the gate.
#[inline]
pub(crate) fn after_launch(stream: CUstream) {
    if ON.load(Ordering::Relaxed) {
        wait_now_and_then(stream);
    }
}

#[cold]
fn wait_now_and_then(stream: CUstream) {
    PACE.with(|pace| {
        let launches = pace.since_wait.get() + 1;
        pace.since_wait.set(launches);
        if launches < pace.batch.get() {
            return;
        }
        pace.since_wait.set(0);
        let Some(mark) = streams::mark_one(stream) else { return };
        let start = Instant::now();
        while ON.load(Ordering::Relaxed) && matches!(mark.unfinished(), Ok(1..)) {
            if start.elapsed() > PATIENCE {
                let unpaced = (pace.in_vain.get() * 2).min(MOST_LAUNCHES);
                pace.in_vain.set(unpaced);
                pace.batch.set(unpaced);
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        pace.in_vain.set(1);
        pace.batch.set(next_batch(launches, start.elapsed()));
    });
}

/// How many launches to let go next, after `launches` took `waited` to finish.
fn next_batch(launches: u32, waited: Duration) -> u32 {
    if waited > IN_FLIGHT {
        (launches / 2).max(1)
    } else if waited < IN_FLIGHT / 4 {
        (launches * 2).min(MOST_LAUNCHES)
    } else {
        launches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_settle_where_a_batch_takes_about_the_bound() {
        for kernel in [Duration::from_micros(3), Duration::from_micros(400), Duration::from_millis(40)] {
            let mut batch = 8;
            for _ in 0..32 {
                batch = next_batch(batch, kernel * batch);
            }
            assert!(batch == 1 || kernel * batch <= IN_FLIGHT, "{batch} of {kernel:?}");
            assert!(batch == MOST_LAUNCHES || kernel * batch >= IN_FLIGHT / 4, "{batch} of {kernel:?}");
        }
    }
}
