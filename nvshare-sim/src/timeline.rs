//! The time of a piece of work by the card's clocks. Work reserves a lane from the moment it became ready (not from the
//! moment its thread got a processor), is done for real, and sleeps out the rest: queued copies run back to back at the
//! link's whole speed although sleeps overshoot.

use std::ops::Range;
use std::time::Duration;

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{Lane, now};

use crate::call::Outcome;
use crate::context::Context;

/// How much behind the real clock work may run and still catch up: the machine's hiccups, not its lack of speed.
const CATCH_UP: u64 = 100_000_000;

/// Waits up to this long spin: a sleep would overshoot by more.
const SPIN: u64 = 15_000;

/// Lanes are reserved, and memory is touched, in pieces of at most this size: two transfers share the link fairly, and a
/// kernel notices that its context is gone.
pub(crate) const PIECE: u64 = 4 << 20;

/// Where a piece of work is in time.
pub(crate) struct Timeline<'a> {
    /// Whose work it is: where it is gone, or there was an error for good, the work ends.
    pub(crate) context: &'a Context,
    /// The (virtual) time up to which it is done.
    pub(crate) at: u64,
}

impl Timeline<'_> {
    /// Does `work` in pieces of `bytes`, each taking the lane's time for it times `slowdown`.
    pub(crate) fn occupy(
        &mut self,
        device: usize,
        lane: Lane,
        bytes: u64,
        slowdown: u64,
        mut work: impl FnMut(&mut Self, Range<u64>),
    ) -> Outcome {
        let rate = crate::device::rate(lane);
        let piece = (rate / 500).clamp(256 << 10, PIECE) & !4095;
        let mut from = 0;
        while from < bytes {
            let to = bytes.min(from + piece);
            self.check()?;
            let time =
                (u128::from(to - from) * u128::from(slowdown) * 1_000_000_000 / u128::from(rate)) as u64;
            self.at = self.at.max(now().saturating_sub(CATCH_UP));
            self.at = crate::device::reserve(device, lane, self.at, time, to - from);
            work(self, from..to);
            self.sleep();
            from = to;
        }
        Ok(())
    }

    /// Lets `nanoseconds` pass.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        self.at += nanoseconds;
    }

    /// Lets `nanoseconds` of the real clock pass from now on, in steps, so that the end of the context is noticed.
    pub(crate) fn spin(&mut self, nanoseconds: u64) -> Outcome {
        let end = self.at.max(now()).saturating_add(nanoseconds);
        while now() < end {
            self.check()?;
            self.at = end.min(now() + 20_000_000);
            self.sleep();
        }
        self.at = end;
        Ok(())
    }

    /// Work of a context that is gone, or after an error for good, does not go on.
    pub(crate) fn check(&self) -> Outcome {
        match crate::failure::get() {
            Some(error) => Err(error),
            None if self.context.is_destroyed() => Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED),
            None => Ok(()),
        }
    }

    /// Sleeps until the real clock has reached this time.
    pub(crate) fn sleep(&self) {
        loop {
            let left = self.at.saturating_sub(now());
            match left {
                0 => return,
                _ if left <= SPIN => std::hint::spin_loop(),
                _ => std::thread::sleep(Duration::from_nanos(left - SPIN / 2)),
            }
        }
    }
}
