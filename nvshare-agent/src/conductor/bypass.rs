//! Whether a client makes driver calls that its shim does not see. The uprobes count calls since they were attached, the
//! client's page counts them since the process began, and the shim counts before it calls. So two things are always true
//! of a client that bypasses nothing:
//!
//! - what was seen since the attach is at most what the page counts;
//! - what was *more* seen between two moments is at most what the page counts more between two moments around them, and
//!   one call for each thread that had counted and not yet called when the page was looked at first. This one also holds
//!   for an agent that came later than the process. Where the page was looked at before the first of the calls that were
//!   seen, as is usual after a restart of the agent beside a process that rests, all of them count; else those that came
//!   after a few more batches.
//!
//! Pure: batches and threads are counted by the conductor.

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::Counts;
use nvshare_common::probe::Call;

/// An observation in the batch that many later was read from the kernel after the page was looked at: no more of them can
/// have been on their way.
const LAG: u64 = super::BATCHES as u64 + 2;

/// What is known of one client's calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// The page when the session began, and when that was.
    greeted: Option<(Moment, First)>,
    /// The page at the first look, in which batch that was, and how many threads there were.
    first: Option<First>,
    /// What had been seen a little later.
    seen: Option<Counts>,
    /// The last counts: they only grow, unless the uprobes were attached anew.
    last: Counts,
}

#[derive(Clone, Debug)]
struct First {
    page: Counts,
    batch: u64,
    threads: u64,
}

impl Watch {
    /// The page counted this at some time before `at`, when the process had so many threads.
    pub(super) fn since(page: &Counts, at: Moment, threads: u64) -> Watch {
        Watch { greeted: Some((at, First { page: *page, batch: 0, threads })), ..Watch::default() }
    }

    /// The uprobes have `seen` so much, the first of it at `first_call`, and then the page counted that. Says which call was
    /// made more often than it counts, if any.
    pub(super) fn look(
        &mut self,
        seen: &Counts,
        page: &Counts,
        batch: u64,
        first_call: Moment,
        threads: impl FnOnce() -> u64,
    ) -> Option<usize> {
        if (0..Call::COUNT).any(|call| sum(seen, call) < sum(&self.last, call)) {
            *self = Watch { greeted: self.greeted.take(), ..Watch::default() };
        }
        if self.first.is_none()
            && let Some((at, first)) = &self.greeted
            && first_call > *at
        {
            self.first = Some(first.clone());
            self.seen = Some(Counts::default());
        }
        self.last = *seen;
        let beyond = (0..Call::COMPARED).find(|call| sum(seen, *call) > sum(page, *call));
        if beyond.is_some() {
            return beyond;
        }
        let first = self.first.get_or_insert_with(|| First { page: *page, batch, threads: threads() });
        let from = match &self.seen {
            Some(from) => from,
            None if batch >= first.batch + LAG => self.seen.insert(*seen),
            None => return None,
        };
        (0..Call::COMPARED).find(|call| {
            let counted = sum(page, *call).saturating_sub(sum(&first.page, *call)) + first.threads;
            sum(seen, *call) - sum(from, *call) > counted
        })
    }
}

fn sum(counts: &Counts, call: usize) -> u64 {
    counts.application[call].saturating_add(counts.engine[call])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launches(count: u64) -> Counts {
        let mut counts = Counts::default();
        counts.application[Call::Launch as usize] = count;
        counts
    }

    fn look(watch: &mut Watch, seen: u64, page: u64, batch: u64) -> bool {
        watch.look(&launches(seen), &launches(page), batch, Moment(500), || 4).is_some()
    }

    #[test]
    fn more_calls_than_the_page_ever_counted_are_a_bypass_at_once() {
        let mut watch = Watch::default();
        assert!(!look(&mut watch, 5, 5, 0));
        assert!(look(&mut watch, 6, 5, 1));
    }

    #[test]
    fn an_agent_that_came_late_finds_a_bypass_of_fewer_calls_than_were_made_before() {
        let mut watch = Watch::default();
        // A thousand launches before the attach; and while the first observations were on their way, many more.
        assert!(!look(&mut watch, 3, 1_003, 0));
        assert!(!look(&mut watch, 400, 2_000, LAG));
        assert!(!look(&mut watch, 1_390, 2_000, LAG + 1), "these were counted before the second look");
        assert!(!look(&mut watch, 1_401, 2_000, LAG + 2), "four threads may have counted and not called");
        assert!(look(&mut watch, 1_402, 2_000, LAG + 3));
    }

    #[test]
    fn all_calls_count_that_came_after_the_session_of_a_process_that_rested() {
        let mut watch = Watch::since(&launches(1_000), Moment(499), 4);
        assert!(!look(&mut watch, 5, 1_001, 0), "four threads had counted and not called");
        assert!(look(&mut watch, 900, 1_001, 1), "at the first sight of them");
        let mut watch = Watch::since(&launches(1_000), Moment(500), 4);
        assert!(
            !look(&mut watch, 900, 1_001, 1),
            "some of these may have come before the page was looked at"
        );
    }

    #[test]
    fn honest_calls_are_none_however_late_the_observations_come() {
        let mut watch = Watch::default();
        let mut page = 10_000_u64;
        for batch in 0..200 {
            page += 97;
            // What was seen is older than the page by as much as can be on its way, and by calls under way.
            let seen = (page - 10_000).saturating_sub(97 * 5);
            assert!(!look(&mut watch, seen, page, batch));
        }
    }

    #[test]
    fn probes_that_were_attached_anew_count_anew() {
        let mut watch = Watch::default();
        for batch in 0..20 {
            assert!(!look(&mut watch, 100 + batch, 1_000 + batch, batch));
        }
        assert!(!look(&mut watch, 2, 1_100, 20));
        assert!(!look(&mut watch, 500, 1_600, 20 + LAG));
    }
}
