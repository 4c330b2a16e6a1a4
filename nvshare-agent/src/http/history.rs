//! The last minutes, so that a page that was opened just now shows them: one sample a second of who did what and where
//! its memory was. Bounded in time and in clients; it lives with the pages and not with the conductor.

use std::collections::VecDeque;

use nvshare_agent_core::snapshot::{Activity, State, Switch};
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ClientId;
use serde::Serialize;

/// Seconds between two samples, at least.
pub(super) const STEP: f64 = 1.0;
/// How many samples are kept: five minutes.
const SAMPLES: usize = 300;
/// How many clients one sample shows; the first of the list.
const CLIENTS: usize = 256;

/// One moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Sample {
    /// The agent's `up_seconds` then.
    up_seconds: f64,
    /// Client, what it did, and what it held on devices and only on the host.
    clients: Vec<(ClientId, Activity, Bytes, Bytes)>,
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

/// What `/api/v1/history` answers.
#[derive(Debug, Serialize)]
pub(super) struct Answer<'a> {
    samples: &'a VecDeque<Sample>,
    /// The switches of the same time, oldest first.
    switches: Vec<&'a Switch>,
}

impl History {
    /// Looks at a state that was just published; keeps it if the last one kept is old enough.
    pub(super) fn record(&mut self, state: &State) {
        let since = self.samples.back().map_or(f64::INFINITY, |last| state.up_seconds - last.up_seconds);
        if since < STEP {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        let clients = state.clients.iter().take(CLIENTS).map(|client| {
            let sum = |of: fn(&nvshare_agent_core::snapshot::ClientDevice) -> Bytes| {
                client.devices.iter().map(of).sum()
            };
            (client.client, client.activity, sum(|held| held.resident), sum(|held| held.swapped))
        });
        self.samples.push_back(Sample { up_seconds: state.up_seconds, clients: clients.collect() });
    }

    /// Everything kept, with the switches of that time, which `state` remembers.
    pub(super) fn answer<'a>(&'a self, state: &'a State) -> Answer<'a> {
        let begin = self.samples.front().map_or(state.up_seconds, |first| first.up_seconds);
        let switches = state.switches.recent.iter().filter(|switch| switch.up_seconds >= begin);
        Answer { samples: &self.samples, switches: switches.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(up_seconds: f64) -> State {
        State { up_seconds, ..State::default() }
    }

    #[test]
    fn a_second_is_kept_once_and_minutes_do_not_pile_up() {
        let mut history = History::default();
        for tenth in 0..10 * SAMPLES as u32 * 2 {
            history.record(&at(f64::from(tenth) / 10.0));
        }
        assert_eq!(history.samples.len(), SAMPLES);
        let (first, last) = (history.samples.front().unwrap(), history.samples.back().unwrap());
        assert!((last.up_seconds - first.up_seconds - (SAMPLES - 1) as f64).abs() < 1e-6);
    }

    #[test]
    fn only_switches_of_the_time_that_is_kept_are_answered() {
        let mut history = History::default();
        history.record(&at(100.0));
        let mut state = at(101.0);
        for (number, up_seconds) in [(1, 99.0), (2, 100.5)] {
            let switch = serde_json::json!({
                "number": number, "up_seconds": up_seconds, "client": 1, "pid": 1, "seconds": 0.1,
                "drain_seconds": 0.0, "bytes_out": 0, "bytes_in": 0, "clean": 0,
            });
            state.switches.recent.push(serde_json::from_value(switch).unwrap());
        }
        let numbers: Vec<u64> = history.answer(&state).switches.iter().map(|switch| switch.number).collect();
        assert_eq!(numbers, [2]);
    }
}
