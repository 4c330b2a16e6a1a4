//! What the agent tells of a run: its switches, looked at while the clients run, and its totals at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvshare_testbed::Agent;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Mode;
use super::report::{Count, Events, Run};

/// What the demo reads of `/api/v1/state`.
#[derive(Deserialize)]
struct State {
    clients: Vec<IgnoredAny>,
    ended_count: u64,
    ended_totals: Totals,
    observer: Observer,
    switches: Switches,
}

/// What all clients did together.
#[derive(Deserialize)]
struct Totals {
    application_calls: BTreeMap<String, u64>,
    engine_calls: BTreeMap<String, u64>,
    application_seen: BTreeMap<String, u64>,
    engine_seen: BTreeMap<String, u64>,
    copied_out: u64,
    copied_in: u64,
}

#[derive(Deserialize)]
struct Observer {
    lost: u64,
}

#[derive(Deserialize)]
struct Switches {
    count: u64,
    recent: Vec<Switch>,
}

/// One switch.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Switch {
    number: u64,
    seconds: f64,
    drain_seconds: f64,
    bytes_out: u64,
    bytes_in: u64,
}

/// Collects switches while the clients run: the agent remembers only the last ones.
pub(crate) struct Watch<'a> {
    agent: &'a Agent,
    switches: BTreeMap<u64, Switch>,
    next: Instant,
}

impl Watch<'_> {
    pub(crate) fn new(agent: &Agent) -> Watch<'_> {
        Watch { agent, switches: BTreeMap::new(), next: Instant::now() }
    }

    /// Looks at the agent's state, not too often.
    pub(crate) fn look(&mut self) {
        if Instant::now() >= self.next {
            self.next = Instant::now() + Duration::from_secs(1);
            // What is missed now is seen the next time; the last look must succeed.
            let _ = self.state();
        }
    }

    fn state(&mut self) -> Result<State> {
        let state: State = serde_json::from_value(self.agent.try_state()?).context("the agent's state")?;
        self.switches.extend(state.switches.recent.iter().map(|switch| (switch.number, *switch)));
        Ok(state)
    }

    /// The figures of the run. All clients have ended; the agent may need a moment to see that.
    pub(crate) fn finish(mut self, link: u64, processes: u64) -> Result<Run> {
        let end = Instant::now() + Duration::from_secs(10);
        let state = loop {
            let state = self.state()?;
            if state.clients.is_empty() && state.ended_count >= processes {
                break state;
            }
            ensure!(
                Instant::now() < end,
                "the agent saw {} of {processes} clients, and {} did not end",
                state.ended_count + state.clients.len() as u64,
                state.clients.len()
            );
            std::thread::sleep(Duration::from_millis(50));
        };
        let all: Vec<Switch> = self.switches.into_values().collect();
        let steady: Vec<Switch> = all.iter().copied().filter(Switch::is_steady).collect();
        let of = |figure: &dyn Fn(&Switch) -> f64| median(steady.iter().map(figure).collect());
        let totals = &state.ended_totals;
        let events = Events {
            application: counts(&totals.application_calls, &totals.application_seen),
            engine: counts(&totals.engine_calls, &totals.engine_seen),
        };
        let sum = |count: fn(&Count) -> u64| events.application.iter().chain(&events.engine).map(count).sum();
        Ok(Run {
            mode: Mode::Nvshare,
            seconds: 0.0,
            slowest_first_response_seconds: all.iter().map(|switch| switch.seconds).fold(0.0, f64::max),
            bytes_moved: Some(totals.copied_out + totals.copied_in),
            switches: state.switches.count,
            switch_seconds_median: of(&|switch| switch.seconds),
            switch_over_link: of(&|switch| switch.seconds / switch.link_seconds(link)),
            drain_seconds_median: of(&|switch| switch.drain_seconds),
            data_errors: 0,
            events_expected: sum(|count| count.expected),
            events_seen: sum(|count| count.seen),
            events_lost: state.observer.lost,
            events: Some(events),
        })
    }
}

impl Switch {
    /// Whether it moved bytes both ways: not the first turns, when memory is new, nor the last, when there is room.
    fn is_steady(&self) -> bool {
        self.bytes_out > 0 && self.bytes_in > 0
    }

    /// How long the link takes for its bytes, both ways at once.
    fn link_seconds(&self, link: u64) -> f64 {
        self.bytes_out.max(self.bytes_in) as f64 / link as f64
    }
}

/// Of the calls that the shims count; some are only observed.
fn counts(expected: &BTreeMap<String, u64>, seen: &BTreeMap<String, u64>) -> Vec<Count> {
    let count = |call: &String| Count {
        call: call.clone(),
        expected: expected.get(call).copied().unwrap_or_default(),
        seen: seen.get(call).copied().unwrap_or_default(),
    };
    expected.keys().map(count).filter(|count| count.expected + count.seen > 0).collect()
}

/// The middle one (the lower of two).
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_works_both_ways_at_once() {
        let switch = Switch { number: 1, seconds: 0.5, drain_seconds: 0.1, bytes_out: 300, bytes_in: 400 };
        assert!(switch.is_steady());
        assert!((switch.link_seconds(1000) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn a_call_that_only_one_side_made_is_kept_and_one_that_is_only_observed_is_not() {
        let all =
            |counts: [(&str, u64); 3]| BTreeMap::from(counts.map(|(call, count)| (call.to_owned(), count)));
        let expected = all([("alloc", 1), ("free", 0), ("never", 0)]);
        let seen = all([("context_create", 4), ("free", 1), ("never", 0)]);
        let found = counts(&expected, &seen);
        let found: Vec<_> = found.iter().map(|c| (c.call.as_str(), c.expected, c.seen)).collect();
        assert_eq!(found, [("alloc", 1, 0), ("free", 0, 1)]);
    }

    #[test]
    fn the_median_of_nothing_is_nothing() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    }
}
