//! When a client works and when it pauses.

use std::collections::VecDeque;
use std::time::Duration;

use super::Client;
use super::readers::readers;
use crate::moment::Moment;

/// How many recent pauses are remembered.
const PAUSES: usize = 8;
/// A gap between two signs of work that counts as a pause.
const PAUSE: Duration = Duration::from_millis(5);
/// A client that showed a sign of work within this time is at work.
const BUSY: Duration = Duration::from_millis(100);

/// The signs of work of one client.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity {
    active_at: Moment,
    /// Its latest pauses.
    pauses: VecDeque<Duration>,
}

impl Activity {
    /// It is as good as at work at that moment.
    pub(super) fn worked(&mut self, at: Moment) {
        self.active_at = self.active_at.max(at);
    }
}

impl Client {
    readers! {
        /// Its last sign of work.
        active_at in activity: Moment,
    }

    /// It showed a sign of work.
    pub(super) fn active(&mut self, at: Moment) {
        let pause = at.since(self.activity.active_at);
        if pause > PAUSE && self.activity.active_at != Moment::NEVER {
            if self.activity.pauses.len() == PAUSES {
                self.activity.pauses.pop_front();
            }
            self.activity.pauses.push_back(pause);
        }
        self.activity.worked(at);
    }

    /// Its usual pause; none before it has had a few.
    pub fn usual_pause(&self) -> Option<Duration> {
        if self.activity.pauses.len() < PAUSES / 2 {
            return None;
        }
        let mut pauses: Vec<_> = self.activity.pauses.iter().copied().collect();
        pauses.sort_unstable();
        Some(pauses[pauses.len() / 2])
    }

    /// Whether it is at work, roughly.
    pub fn busy(&self, now: Moment) -> bool {
        now.since(self.activity.active_at) < BUSY
    }
}
