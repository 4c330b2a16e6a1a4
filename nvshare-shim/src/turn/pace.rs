//! Pacing: while somebody else waits for the card, launches wait now and then for what they submitted, so that the next
//! drain does not have to wait for a queue of a thousand kernels. They wait for the end of the batch before the last: the
//! one that follows it is in the stream meanwhile, and the device never waits for the host.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cuda::sys::CUstream;
use crate::streams::{self, Mark};

/// How much work may be in flight beside the batch that runs, by the time it takes.
const IN_FLIGHT: Duration = Duration::from_millis(10);
/// How long a thread waits at most: what it submitted may itself wait for what the thread does next, or for a process that
/// is stopped.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long at least, where it waited in vain before.
const LEAST_PATIENCE: Duration = Duration::from_millis(2);
/// How many launches may be in flight at most, however short they are.
const MOST_LAUNCHES: u32 = 256;

static ON: AtomicBool = AtomicBool::new(false);

thread_local! {
    static PACE: Pace = const {
        Pace {
            since_mark: Cell::new(0),
            batch: Cell::new(8),
            patience: Cell::new(PATIENCE),
            before: RefCell::new(None),
        }
    };
}

struct Pace {
    /// Launches since the last mark.
    since_mark: Cell<u32>,
    /// How many launches to let go between marks.
    batch: Cell<u32>,
    /// How long the next wait may take.
    patience: Cell<Duration>,
    /// After the batch before.
    before: RefCell<Option<Batch>>,
}

struct Batch {
    stream: CUstream,
    mark: Mark,
}

/// A thread's turn to wait, outside the gate.
#[must_use]
pub(crate) struct Turn {
    before: Batch,
    launches: u32,
}

/// Turns pacing on or off.
pub fn set(on: bool) {
    ON.store(on, Ordering::Release);
}

/// A launch into `stream` was made by the calling thread, which is still inside the gate. (Boxed, for the answer is carried
/// through every launch, and is nearly always none.)
#[inline]
pub(crate) fn after_launch(stream: CUstream) -> Option<Box<Turn>> {
    if ON.load(Ordering::Relaxed) { mark_now_and_then(stream) } else { None }
}

#[cold]
fn mark_now_and_then(stream: CUstream) -> Option<Box<Turn>> {
    // A thread that is ending is not paced.
    let turn = PACE.try_with(|pace| {
        let launches = pace.since_mark.get() + 1;
        pace.since_mark.set(launches);
        if launches < pace.batch.get() {
            return None;
        }
        pace.since_mark.set(0);
        let mark = streams::mark(stream).ok().flatten()?;
        let before = pace.before.replace(Some(Batch { stream, mark }))?;
        // Of another stream's batch nothing follows for this one.
        (before.stream == stream).then(|| Box::new(Turn { before, launches }))
    });
    turn.ok().flatten()
}

impl Turn {
    /// Waits until the batch before is finished, or for as long as is bearable.
    pub(crate) fn wait(self) {
        let patience = PACE.try_with(|pace| pace.patience.get()).unwrap_or(LEAST_PATIENCE);
        let start = Instant::now();
        let mut in_vain = false;
        while ON.load(Ordering::Relaxed) && !in_vain && self.before.mark.answer() == Ok(false) {
            in_vain = start.elapsed() > patience;
            std::thread::sleep(Duration::from_micros(50));
        }
        let batch = if in_vain { MOST_LAUNCHES } else { next_batch(self.launches, start.elapsed()) };
        let _ = PACE.try_with(|pace| {
            pace.batch.set(batch);
            pace.patience.set(next_patience(patience, in_vain));
        });
    }
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

/// How long the next wait may take.
fn next_patience(patience: Duration, in_vain: bool) -> Duration {
    if in_vain { (patience / 4).max(LEAST_PATIENCE) } else { (patience * 2).min(PATIENCE) }
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

    #[test]
    fn a_stream_that_waits_for_another_process_costs_little_more_than_one_wait() {
        let (mut patience, mut waited) = (PATIENCE, Duration::ZERO);
        for _ in 0..8 {
            waited += patience;
            patience = next_patience(patience, true);
        }
        assert!(waited < PATIENCE * 3 / 2, "{waited:?}");
        for _ in 0..8 {
            patience = next_patience(patience, false);
        }
        assert_eq!(patience, PATIENCE);
    }
}
