//! The story of a node, told at info from what is published: which devices there are, and when clients have to take
//! turns. A few lines an hour: what goes to and fro is told once.

use std::collections::BTreeMap;

use nvshare_agent_core::snapshot::{Device, State};
use tracing::info;

/// Taking turns is over when it has been for this long, in seconds of the agent's time.
const OVER: f64 = 10.0;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Story {
    devices: BTreeMap<String, Told>,
}

/// Of one device.
#[derive(Debug, Default)]
struct Told {
    /// Since when its clients take turns.
    turns: Option<Turns>,
}

#[derive(Debug)]
struct Turns {
    began: f64,
    /// When that was last so.
    last: f64,
    /// Switches before it began.
    switches: u64,
}

/// One sentence of it.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Device(&'a Device),
    TurnsBegin(&'a Device),
    TurnsEnd { device: &'a Device, seconds: f64, switches: u64 },
}

impl Story {
    /// Tells what is new in `state`.
    pub(super) fn tell(&mut self, state: &State) {
        for line in self.lines(state) {
            line.log(state);
        }
    }

    fn lines<'a>(&mut self, state: &'a State) -> Vec<Line<'a>> {
        let (now, switches) = (state.up_seconds, state.switches.count);
        let mut lines = Vec::new();
        // That a card is lost was told when its reading failed; it is told again as a device to share when it is back.
        self.devices.retain(|uuid, _| state.devices.iter().any(|device| device.uuid == *uuid));
        for device in &state.devices {
            let told = self.devices.entry(device.uuid.clone()).or_insert_with(|| {
                lines.push(Line::Device(device));
                Told::default()
            });
            match &mut told.turns {
                None if device.contended => {
                    lines.push(Line::TurnsBegin(device));
                    told.turns = Some(Turns { began: now, last: now, switches });
                }
                Some(turns) if device.contended => turns.last = now,
                Some(turns) if now - turns.last >= OVER => {
                    let (seconds, switches) = (turns.last - turns.began, switches - turns.switches);
                    lines.push(Line::TurnsEnd { device, seconds, switches });
                    told.turns = None;
                }
                _ => {}
            }
        }
        lines
    }
}

impl Line<'_> {
    fn log(&self, state: &State) {
        match self {
            Line::Device(device) => info!(
                gpu = device.index,
                uuid = device.uuid,
                name = device.name,
                total = %device.total,
                capacity = %device.capacity,
                "a device to share"
            ),
            Line::TurnsBegin(device) => info!(
                gpu = device.index,
                uuid = device.uuid,
                needed = %device.needed,
                capacity = %device.capacity,
                foreign = %device.foreign,
                clients = state.clients.len(),
                "clients need more than there is: they take turns"
            ),
            Line::TurnsEnd { device, seconds, switches } => info!(
                gpu = device.index,
                uuid = device.uuid,
                seconds = format!("{seconds:.1}"),
                switches,
                "all clients fit again: nobody is stopped"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(up_seconds: f64, contended: bool, switches: u64) -> State {
        let device = Device { uuid: "GPU-1".to_owned(), contended, ..Device::default() };
        let mut state = State { up_seconds, devices: vec![device], ..State::default() };
        state.switches.count = switches;
        state
    }

    #[test]
    fn taking_turns_is_told_when_it_begins_and_when_it_has_been_over_for_a_while() {
        let mut story = Story::default();
        let mut told = |state: State| story.lines(&state).len();
        assert_eq!(told(at(0.0, false, 3)), 1, "the device");
        assert_eq!(told(at(1.0, true, 3)), 1, "it begins");
        assert_eq!(
            told(at(5.0, false, 6)) + told(at(6.0, true, 8)) + told(at(7.0, false, 9)),
            0,
            "to and fro"
        );
        let state = at(16.0, false, 9);
        let end = Line::TurnsEnd { device: &state.devices[0], seconds: 5.0, switches: 6 };
        assert_eq!(story.lines(&state), [end]);
        assert_eq!(story.lines(&State::default()), [], "the roll of the cards tells that one is lost");
        assert_eq!(story.lines(&state), [Line::Device(&state.devices[0])]);
    }
}
