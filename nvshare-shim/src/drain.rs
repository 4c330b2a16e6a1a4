//! The drain: with the gate shut, wait until the calls in flight have returned and all work they submitted is finished.
//! No call is made that concerns a whole context (such calls fail while a stream is captured, and cannot be given up).

use std::time::{Duration, Instant};

use crate::cuda::CUresult;
use crate::driver::driver;
use crate::swap::standing;
use crate::{gate, streams};

/// Proof that nothing of the application ran when it was made; while the gate stays shut nothing does.
#[must_use]
#[derive(Debug)]
pub struct Drained(());

/// Why a drain was given up. The gate is still shut: whoever shut it opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stalled {
    /// Nothing was completed for the time given. What was waited for, for people.
    NoProgress(String),
    /// The device reported an error that no call of this process survives.
    Dead(CUresult),
}

/// Waits until the application's work is finished. The gate must be shut ([`gate::shut`]) and the caller outside any
/// pass. Gives up when no call returned and no event completed for `stall`.
pub fn drain(stall: Duration) -> Result<Drained, Stalled> {
    debug_assert!(gate::is_shut() || crate::swap::is_dead(), "a drain with the gate open proves nothing");
    let mut patience = Patience::new(stall);
    loop {
        wait_until_outside(&mut patience)?;
        let mark = streams::mark();
        let mut before = usize::MAX;
        loop {
            let unfinished = mark.unfinished().map_err(dead)?;
            if unfinished == 0 {
                break;
            }
            patience.step(unfinished < before, || format!("{unfinished} streams with unfinished work"))?;
            before = unfinished;
        }
        if !mark.is_partial() {
            streams::defaults_are_idle();
            return Ok(Drained(()));
        }
        if !mark.is_behind_capture() {
            patience.step(false, || mark.unmarked().unwrap_or_default().to_owned())?;
            continue;
        }
        // A default stream may have work that cannot be asked about before the capture in a blocking stream ends. That
        // takes calls of the application, some of which would wait at the gate.
        let ajar = standing::ajar();
        patience.step(false, || "a capture in a blocking stream to end".to_owned())?;
        drop(ajar);
    }
}

fn wait_until_outside(patience: &mut Patience) -> Result<(), Stalled> {
    let mut before = usize::MAX;
    loop {
        let inside = gate::inside();
        if inside == 0 {
            return Ok(());
        }
        patience.step(inside < before, || format!("{inside} threads inside driver calls"))?;
        before = inside;
    }
}

fn dead(error: CUresult) -> Stalled {
    if !crate::swap::is_final(error) {
        return Stalled::NoProgress(format!("events that cannot be asked: {}", driver().error_name(error)));
    }
    gate::open_for_good();
    crate::swap::on_device_error(error);
    Stalled::Dead(error)
}

/// Waits in growing steps, and ends when nothing happened for too long.
struct Patience {
    stall: Duration,
    last_progress: Instant,
    pause: Duration,
}

impl Patience {
    fn new(stall: Duration) -> Patience {
        Patience { stall, last_progress: Instant::now(), pause: Self::SHORTEST }
    }

    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_micros(500);

    fn step(&mut self, progress: bool, waiting_for: impl FnOnce() -> String) -> Result<(), Stalled> {
        if progress {
            self.last_progress = Instant::now();
            self.pause = Self::SHORTEST;
        } else if self.last_progress.elapsed() > self.stall {
            return Err(Stalled::NoProgress(waiting_for()));
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Self::LONGEST);
        Ok(())
    }
}
