//! Several clients that say anything at all to one agent, in any order, with any counter page and any reading of the
//! cards: the ledger's invariants and everything that is asserted on the way must hold.

use std::collections::BTreeMap;

use nvshare_agent_core::conductor::Core;
use nvshare_agent_core::ledger::{Page, SessionId};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::{Reading, Report};
use nvshare_agent_core::settings::Settings;
use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::frame;
use nvshare_common::ids::{ClientId, DeviceId};
use nvshare_common::protocol::{Hello, ToAgent};

use crate::messages;

/// So many processes take part.
const PROCESSES: usize = 4;
/// So many cards are there; clients speak of twice as many.
const CARDS: u8 = 2;
/// Longer conversations say nothing new.
const MOST_STEPS: usize = 64;
const CARD_BYTES: u64 = 16 << 30;

struct Room {
    core: Core,
    now: u64,
    sessions: u64,
    clients: [Option<(ClientId, SessionId)>; PROCESSES],
}

/// The bytes are steps: what happens, to whom, how many bytes belong to it, these bytes.
pub(crate) fn conversation(bytes: &[u8]) {
    let mut room = Room {
        core: Core::new(Settings::default()),
        now: 1_000_000_000,
        sessions: 0,
        clients: [None; PROCESSES],
    };
    let begin = room.moment();
    room.core.begin_granting(begin);
    room.reading(&[]);
    let mut rest = bytes;
    for _ in 0..MOST_STEPS {
        let [what, who, length, after @ ..] = rest else { break };
        let (payload, after) = after.split_at(usize::from(*length).min(after.len()));
        room.step(*what, usize::from(*who) % PROCESSES, payload);
        rest = after;
    }
    room.now += 120_000_000_000;
    room.reading(&[]);
    room.decide();
}

impl Room {
    fn moment(&self) -> Moment {
        Moment(self.now)
    }

    fn step(&mut self, what: u8, who: usize, payload: &[u8]) {
        self.now += 1_000_000;
        let now = self.moment();
        match what % 8 {
            0 => {
                let Ok(mut hello) = frame::decode::<Hello>(payload) else { return };
                for held in &mut hello.devices {
                    held.device = near(held.device);
                }
                self.sessions += 1;
                let session = SessionId(self.sessions);
                let process = Process { pid: 100 + who as u32, start: 1 };
                let client = self.core.hello(process, session, &hello, now);
                let _ = self.core.first_limits(client);
                self.clients[who] = Some((client, session));
            }
            1 | 2 => {
                let (Some((client, session)), Ok(message)) = (self.clients[who], frame::decode(payload))
                else {
                    return;
                };
                let _ = self.core.hear(client, session, of_a_card(message), now);
            }
            3 => {
                let Some((client, _)) = self.clients[who] else { return };
                let mut numbers = numbers(payload);
                let mut next = || Bytes(numbers.next().unwrap_or_default());
                let holdings = Holdings {
                    resident: next(),
                    swapped: next(),
                    shadow: next(),
                    unswappable: next(),
                    copied_out: next(),
                    copied_in: next(),
                    clean: next(),
                    managed: next(),
                };
                let page = Page { holdings: vec![(DeviceId([0; 16]), holdings)], ..Page::default() };
                self.core.sample(client, &page, now);
            }
            4 => self.reading(payload),
            5 => {
                self.now += numbers(payload).next().unwrap_or_default() % 100_000_000_000;
                self.decide();
            }
            6 => {
                let Some((client, session)) = self.clients[who] else { return };
                self.core.ledger.disconnected(client, session, now);
            }
            _ => {
                let Some((client, _)) = self.clients[who].take() else { return };
                self.core.ledger.exited(client, now);
            }
        }
    }

    /// The cards are read: each number is what one of the processes holds on one of the cards.
    fn reading(&mut self, payload: &[u8]) {
        let mut numbers = numbers(payload);
        let devices = (0..CARDS).map(|card| {
            let per_process: BTreeMap<u32, Bytes> = (0..PROCESSES as u32)
                .map(|process| (100 + process, Bytes(numbers.next().unwrap_or_default() % CARD_BYTES)))
                .collect();
            let used: u64 = per_process.values().map(|bytes| bytes.0).sum();
            Reading {
                device: DeviceId([card; 16]),
                index: u32::from(card),
                name: "card".into(),
                total: Bytes(CARD_BYTES),
                used: Bytes(used.min(CARD_BYTES)),
                link: None,
                per_process,
            }
        });
        let began = Moment(self.now - 500_000);
        let report = Report { began, devices: devices.collect(), complete: true, problem: None };
        let now = self.moment();
        self.core.devices(&report, now);
    }

    fn decide(&mut self) {
        let now = self.moment();
        let _ = self.core.decide(now);
        let _ = self.core.limits();
        let _ = self.core.bury(now);
        assert_eq!(self.core.ledger.check(), Ok(()));
    }
}

/// Words of 8 bytes.
fn numbers(payload: &[u8]) -> impl Iterator<Item = u64> + '_ {
    payload.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Any id, as one of the few that are spoken of.
fn near(device: DeviceId) -> DeviceId {
    DeviceId([device.0[0] % (2 * CARDS); 16])
}

fn of_a_card(mut message: ToAgent) -> ToAgent {
    match &mut message {
        ToAgent::Want { device, .. }
        | ToAgent::WantRoom { device, .. }
        | ToAgent::Released { device, .. }
        | ToAgent::Resident { device, .. }
        | ToAgent::Unswappable { device, .. } => *device = near(*device),
        _ => {}
    }
    message
}

/// Two that come, ask, are stopped and give back.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let step = |what: u8, who: u8, payload: &[u8]| [&[what, who, payload.len() as u8], payload].concat();
    let hello = Hello { release: "0.1.0".into(), running: true, devices: vec![], arenas: 0, bypass: false };
    let hello = frame::encode(&hello).expect("a short message");
    let mut all = Vec::new();
    for who in 0..2 {
        all.extend(step(0, who, &hello));
    }
    for message in messages::to_agent() {
        let message = frame::encode(&message).expect("a short message");
        for who in 0..2 {
            all.extend(step(1, who, &message));
        }
        all.extend(step(5, 0, &1_000_000_000_u64.to_le_bytes()));
    }
    let held: Vec<u8> = (1..8_u64).flat_map(|gib| (gib << 30).to_le_bytes()).collect();
    let life = [
        step(0, 0, &hello),
        step(3, 0, &held),
        step(4, 0, &held),
        step(5, 0, &100_u64.to_le_bytes()),
        step(6, 0, &[]),
        step(0, 0, &hello),
        step(7, 0, &[]),
        step(5, 0, &[0xff; 8]),
    ];
    vec![all, life.concat()]
}
