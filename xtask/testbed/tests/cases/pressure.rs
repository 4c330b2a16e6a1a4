//! Pressure: many processes at once on a card that is nearly full, whose calls find no memory here and there, some of which
//! reset the device again and again; and every byte is checked. `NVSHARE_PRESSURE_SECONDS` makes it longer than the few
//! seconds that everybody has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use nvshare_testbed::{ClientCommand, Node};

use super::run::{Running, TURNS, agent, card, hooked, swapped};

/// How long each process works.
fn seconds() -> u64 {
    std::env::var("NVSHARE_PRESSURE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

/// As random as it has to be; another seed each time, which is said when something is wrong.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        Dice(RandomState::new().build_hasher().finish() | 1)
    }

    fn throw(&mut self, from: u64, to: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        from + self.0 % (to - from)
    }

    /// Calls that find no memory: of each kind one early, and some in a row later.
    fn faults(&mut self) -> String {
        let mut all = Vec::new();
        for (point, early, late) in [
            ("create", 60, 400),
            ("map", 60, 400),
            ("access", 60, 400),
            ("alloc", 30, 100),
            ("host", 5, 10),
            ("module", 4, 8),
            ("launch", 200, 2000),
            ("copy", 200, 2000),
        ] {
            let (one, several) = (self.throw(2, early), self.throw(early, late));
            let last = several + self.throw(0, 9);
            all.push(format!("{point}:{one}=oom"));
            all.push(format!("{point}:{several}-{last}=oom"));
        }
        all.join(",")
    }
}

/// Several processes; every other one resets the device each third of a second.
fn under_pressure(node: &Node, processes: u64, mib: u64, command: impl Fn(&str) -> ClientCommand) {
    let mut dice = Dice::new();
    let running: Vec<(String, Running)> = (0..processes)
        .map(|number| {
            let reset = if number % 2 == 0 { "" } else { " reset" };
            let arguments = format!("{} {} {mib} 3{reset}", dice.throw(1, 1 << 40), seconds());
            let faults = if number % 3 == 2 { String::new() } else { dice.faults() };
            let mut command = command(&arguments);
            command.env("NVSHARE_SIM_FAULTS", &faults);
            (format!("pressure {arguments}, NVSHARE_SIM_FAULTS={faults}"), Running::start(&mut command))
        })
        .collect();
    for (what, process) in running {
        let ended = process.end(Duration::from_secs(seconds() + 60));
        ended.assert_well(&what);
    }
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn every_byte_survives_forced_swaps_on_a_crowded_card() {
    let node = card("256M");
    under_pressure(&node, 4, 44, |arguments| swapped(&node, "pressure", arguments, "30ms"));
}

#[test]
fn every_byte_survives_turns_beside_an_agent_with_little_host_memory() {
    let node = card("256M");
    let flags = [&TURNS[..], &["--host-memory", "400M"]].concat();
    let _agent = agent(&node, &flags);
    under_pressure(&node, 5, 80, |arguments| hooked(&node, "pressure", arguments));
}
