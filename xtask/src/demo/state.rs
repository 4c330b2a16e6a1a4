//! What the agent tells of a run: its state, looked at while the clients run and once more at the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nvshare_testbed::Agent;
use serde_json::Value;

use super::Mode;
use super::report::{Count, Events, Run};

/// One switch, as the agent reports it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Switch {
    seconds: f64,
    bytes_out: u64,
    bytes_in: u64,
}

/// Collects switches while the clients run: the agent remembers only the last ones.
pub(crate) struct Watch<'a> {
    agent: &'a Agent,
    switches: BTreeMap<u64, Switch>,
}

impl Watch<'_> {
    pub(crate) fn new(agent: &Agent) -> Watch<'_> {
        Watch { agent, switches: BTreeMap::new() }
    }

    /// Looks at the agent's state.
    pub(crate) fn look(&mut self) {
        if let Ok(state) = self.agent.try_state() {
            let _ = self.take(&state);
        }
    }

    fn take(&mut self, state: &Value) -> Result<()> {
        for switch in
            state["switches"]["recent"].as_array().context("no recent switches in the agent's state")?
        {
            let number = switch["number"].as_u64().context("a switch without a number")?;
            self.switches.insert(
                number,
                Switch {
                    seconds: switch["seconds"].as_f64().context("a switch without a time")?,
                    bytes_out: switch["bytes_out"].as_u64().context("a switch without bytes")?,
                    bytes_in: switch["bytes_in"].as_u64().context("a switch without bytes")?,
                },
            );
        }
        Ok(())
    }

    /// The figures of the run. All clients have ended.
    pub(crate) fn finish(mut self, link: u64, _processes: u64) -> Result<Run> {
        let state = self.agent.try_state()?;
        self.take(&state)?;
        let all: Vec<Switch> = self.switches.into_values().collect();
        let steady: Vec<Switch> = all.iter().copied().filter(|s| s.bytes_in > 0 && s.bytes_out > 0).collect();
        let ratio = |s: &Switch| s.seconds / (s.bytes_in.max(s.bytes_out) as f64 / link as f64);
        let events = Events::default();
        let sum = |count: fn(&Count) -> u64| events.application.iter().chain(&events.engine).map(count).sum();
        Ok(Run {
            mode: Mode::Nvshare,
            seconds: 0.0,
            slowest_first_response_seconds: all.iter().map(|s| s.seconds).fold(0.0, f64::max),
            bytes_moved: Some(all.iter().map(|s| s.bytes_in + s.bytes_out).sum()),
            switches: all.len() as u64,
            switch_seconds_median: median(steady.iter().map(|s| s.seconds).collect()),
            switch_over_link: median(steady.iter().map(ratio).collect()),
            data_errors: 0,
            events_expected: sum(|count| count.expected),
            events_seen: sum(|count| count.seen),
            events_lost: 0,
            events: Some(events),
        })
    }
}

/// The middle one (the lower of two).
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}
