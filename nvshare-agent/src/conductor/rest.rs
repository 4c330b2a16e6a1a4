//! How the agent rests. While nobody waits and no memory moves nothing has to be decided, and what is published stays true:
//! then devices are read rarely, and the conductor only looks whether a counter page has changed. Whatever concerns it
//! wakes it at once (messages, observations, orders, ends of processes); a launch of a client that has everything is
//! noticed at the next look, and by the uprobes, where they are, a tick later.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::reading::Report;

use super::Conductor;
use crate::control::CounterPage;
use crate::device::Rhythm;

/// Between two decisions while clients work and nobody waits, and between two looks at pages while nothing happens.
const CALM: Duration = Duration::from_millis(100);
/// See [`CALM`].
const RESTING: Duration = Duration::from_millis(500);
/// A client that showed no sign of work for this long rests.
const QUIET: Duration = Duration::from_secs(2);
/// Between two published states while something happens, at least, and while nothing does: `/livez` goes by these.
const PUBLISHED: Duration = Duration::from_millis(500);
/// See [`PUBLISHED`].
const PUBLISHED_AT_REST: Duration = Duration::from_secs(5);

impl Conductor {
    /// How long until time alone could change a decision.
    pub(super) fn pause(&self, pressing: bool) -> Duration {
        match self.rhythm {
            _ if self.core.held_back || pressing => Duration::from_millis(10),
            Rhythm::Rest if !self.memory.pressing => RESTING,
            Rhythm::Rest | Rhythm::Fast | Rhythm::Calm => CALM,
        }
    }

    /// The rhythm follows from what the clients do.
    pub(super) fn follow(&mut self, pressing: bool, now: Moment) {
        let rhythm = self.needed_rhythm(pressing, now);
        if rhythm != self.rhythm {
            self.rhythm = rhythm;
            self.poll.every(rhythm);
        }
    }

    fn needed_rhythm(&self, pressing: bool, now: Moment) -> Rhythm {
        let mut rhythm = Rhythm::Rest;
        if pressing || self.core.held_back || !self.core.ledger.strays().is_empty() {
            return Rhythm::Fast;
        }
        for client in self.core.ledger.clients().values() {
            let moves = client.devices().values().any(|holding| {
                holding.outgoing().is_some()
                    || holding.reclaiming().is_some()
                    || holding.granting_since().is_some()
            });
            if moves || client.exited().is_some() || client.stop().is_some() || client.wants().is_some() {
                return Rhythm::Fast;
            }
            if now.since(client.active_at()) < QUIET {
                rhythm = Rhythm::Calm;
            }
        }
        rhythm
    }

    /// Whether a turn would change nothing: only time has passed, or a device was read and is as it was.
    pub(super) fn nothing_happens(&self, now: Moment) -> bool {
        self.rhythm == Rhythm::Rest
            && !self.changed
            && !self.memory.pressing
            && now.since(self.published) < PUBLISHED_AT_REST
            && self.pages.values().all(|paged| digest(&paged.page) == paged.digest)
    }

    pub(super) fn publishes_every(&self) -> Duration {
        if self.rhythm == Rhythm::Rest { PUBLISHED_AT_REST } else { PUBLISHED }
    }

    /// Whether a report says anything that the last did not.
    pub(super) fn is_news(&mut self, report: Report) -> bool {
        let mut news = report.problem.is_some();
        for reading in report.devices {
            if self.read.get(&reading.device) != Some(&reading) {
                self.read.insert(reading.device, reading);
                news = true;
            }
        }
        news
    }
}

/// Of everything on a page, to see whether something has changed. Two changes that cancel out are noticed later.
pub(super) fn digest(page: &CounterPage) -> u64 {
    let mix = |sum: u64, next: u64| (sum ^ next).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let mut sum = page.waiting.load(Ordering::Relaxed);
    for counts in [&page.application, &page.engine] {
        for count in counts {
            sum = mix(sum, count.load(Ordering::Relaxed));
        }
    }
    for device in &page.devices {
        if device.in_use.load(Ordering::Acquire) == 0 {
            break;
        }
        for figure in [&device.resident, &device.swapped, &device.shadow, &device.unswappable] {
            sum = mix(sum, figure.load(Ordering::Relaxed));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::settings::Settings;

    use super::*;
    use crate::clock;

    #[test]
    fn what_is_to_be_kept_does_not_wait_for_the_end_of_a_rest() {
        let (inputs, _heard) = super::super::inputs();
        let poll = crate::device::start("no-such-nvml.so".into(), |_| {}, |_| {}).expect("a thread");
        let (mut conductor, _state) =
            Conductor::new(Settings::default(), poll, &inputs, None).expect("a conductor");
        let now = clock::now();
        conductor.core.held_back = false;
        (conductor.rhythm, conductor.changed, conductor.published) = (Rhythm::Rest, false, now);
        assert!(conductor.nothing_happens(now) && conductor.pause(false) == RESTING);
        conductor.memory.pressing = true;
        assert!(!conductor.nothing_happens(now) && conductor.pause(false) == CALM);
        // Where nothing is kept nothing presses for good.
        conductor.keep(now);
        assert!(conductor.nothing_happens(now));
    }
}
