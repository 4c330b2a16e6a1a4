//! The grant protocol, checked exhaustively in a small world: three clients that together want more than a card has, the
//! real ledger, and an agent that may decide anything the ledger permits (so what holds here holds under any policy).
//! Every order of events is tried: messages wait in queues, NVML's reading takes time, one client is killed at some
//! moment, and one agent is followed by another. In no reachable state could the clients together exceed the card.
//!
//! Time is a counter of events: no deadline passes, and behaviour depends on the order of moments only. Two states count
//! as the same when everything agrees that the ledger's answers depend on; the clients are alike, so their order does not.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use nvshare_agent_core::decision::{At, Decision};
use nvshare_agent_core::ledger::{Booked, Ledger, Page, SessionId};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::Reading;
use nvshare_agent_core::settings::Settings;
use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::ids::{ClientId, DeviceId, Ticket};
use nvshare_common::protocol::{self, Held, Hello};

const CARD: DeviceId = DeviceId([7; 16]);
/// Grants, extents and the card are counted in pieces of this.
const PIECE: u64 = 2 << 20;
const CLIENTS: usize = 3;

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// The card, in pieces.
    card: u64,
    /// What each client wants, in pieces.
    wanted: u64,
    /// Messages that may wait in one queue.
    queue: usize,
    /// Clients that are killed at some moment.
    kills: u8,
    /// Agents that are followed by another at some moment.
    restarts: u8,
}

fn pieces(pieces: u64) -> Bytes {
    Bytes(pieces * PIECE)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum ToShim {
    Grant(u64),
    SwapOut(u64),
}

impl ToShim {
    /// A message as the agent sends it; with its number, if it is to be answered.
    fn read(message: &protocol::ToShim) -> (ToShim, Option<Ticket>) {
        match *message {
            protocol::ToShim::Grant { device: CARD, bytes } => (ToShim::Grant(bytes.0 / PIECE), None),
            protocol::ToShim::SwapOut { ticket, device: CARD, bytes, .. } => {
                (ToShim::SwapOut(bytes.0 / PIECE), Some(ticket))
            }
            ref other => panic!("nobody decided to send {other:?}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum ToAgent {
    Released,
    Done,
}

/// A shim, reduced to what the protocol is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Shim {
    balance: u64,
    resident: u64,
    /// What it was told to give back and has not yet.
    leaving: Option<u64>,
    /// The number of the last `SwapOut` for it. At most one is open, so that numbers tell no states apart: see `key`.
    ticket: Option<Ticket>,
    inbox: VecDeque<ToShim>,
    outbox: VecDeque<ToAgent>,
    dead: bool,
    /// It has said `Hello` to the agent that there is now.
    known: bool,
    /// What its counters said at the last look, and the largest step between two looks.
    looked: u64,
    step: u64,
    looked_total: bool,
}

/// A reading of NVML under way.
#[derive(Clone, Debug)]
struct Begun {
    at: Moment,
    used: [u64; CLIENTS],
}

#[derive(Clone, Debug)]
struct World {
    ledger: Ledger,
    shims: [Shim; CLIENTS],
    reading: Option<Begun>,
    now: u64,
    /// What is left of them.
    bounds: Bounds,
    /// How it came to this.
    past: Option<Rc<Past>>,
}

#[derive(Debug)]
struct Past {
    event: Event,
    before: Option<Rc<Past>>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Grant(usize),
    SwapOut(usize, u64),
    Hear(usize),
    Obey(usize),
    Map(usize),
    GiveBack(usize),
    Begin,
    Read,
    Kill(usize),
    Vanish(usize),
    Restart,
    Hello(usize),
}

impl World {
    fn new(bounds: Bounds) -> World {
        let shims = std::array::from_fn(|_| Shim::default());
        let mut world = World { ledger: Ledger::new(), shims, reading: None, now: 1, bounds, past: None };
        (0..CLIENTS).for_each(|number| world.happen(Event::Hello(number)));
        world.happen(Event::Begin);
        world.happen(Event::Read);
        world
    }

    fn now(&self) -> Moment {
        Moment(self.now)
    }

    fn process(number: usize) -> Process {
        Process { pid: number as u32 + 1, start: 1 }
    }

    fn client(&self, number: usize) -> Option<ClientId> {
        self.ledger.client_of(World::process(number))
    }

    /// Everything that could happen now.
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let all_known = self.all_known();
        let grantable = self.ledger.grantable(CARD, self.now()).is_some_and(|left| left >= PIECE as i64);
        for (number, shim) in self.shims.iter().enumerate() {
            if shim.dead {
                if shim.resident > 0 {
                    events.push(Event::Vanish(number));
                }
                continue;
            }
            if !shim.known {
                events.push(Event::Hello(number));
            } else if let Some(holding) =
                self.client(number).map(|id| &self.ledger.clients()[&id].devices()[&CARD])
            {
                let idle = holding.outgoing().is_none() && shim.inbox.len() < self.bounds.queue;
                if all_known && grantable && idle && holding.granted() < pieces(self.bounds.wanted) {
                    events.push(Event::Grant(number));
                }
                if idle {
                    let granted = holding.granted().0 / PIECE;
                    events.extend((1..=granted).map(|amount| Event::SwapOut(number, amount)));
                }
            }
            if !shim.outbox.is_empty() {
                events.push(Event::Hear(number));
            }
            if !shim.inbox.is_empty() && shim.leaving.is_none() {
                events.push(Event::Obey(number));
            }
            if shim.leaving.is_some() && shim.outbox.len() < self.bounds.queue {
                events.push(Event::GiveBack(number));
            }
            if shim.resident < shim.balance && shim.resident < self.bounds.wanted && shim.leaving.is_none() {
                events.push(Event::Map(number));
            }
            if self.bounds.kills > 0 {
                events.push(Event::Kill(number));
            }
        }
        events.push(if self.reading.is_none() { Event::Begin } else { Event::Read });
        if self.bounds.restarts > 0 {
            events.push(Event::Restart);
        }
        events
    }

    /// Whether everybody who lives has said `Hello` to the agent that there is.
    fn all_known(&self) -> bool {
        self.shims.iter().all(|shim| shim.known || shim.dead)
    }

    fn happen(&mut self, event: Event) {
        let awaited = !self.all_known();
        self.take_place(event);
        if awaited && self.all_known() {
            self.ledger.grant_from(self.now());
        }
    }

    fn take_place(&mut self, event: Event) {
        self.now += 1;
        self.past = Some(Rc::new(Past { event, before: self.past.take() }));
        let now = self.now();
        match event {
            Event::Grant(number) => {
                let client = self.client(number).expect("a client");
                self.decided(&Decision::Grant(At { client, device: CARD }, pieces(1)));
            }
            Event::SwapOut(number, amount) => {
                let client = self.client(number).expect("a client");
                let at = At { client, device: CARD };
                self.decided(&Decision::SwapOut { at, bytes: pieces(amount), gains: None });
            }
            Event::Hear(number) => {
                let id = self.client(number).expect("a client");
                let ticket = self.shims[number].ticket;
                match self.shims[number].outbox.pop_front().expect("a message") {
                    ToAgent::Released => {
                        let believed = self.ledger.released(id, ticket, CARD, pieces(1), now);
                        assert_eq!(believed, pieces(1), "the agent did not know that client {number} had it");
                    }
                    ToAgent::Done => {
                        let done = self.ledger.swap_out_done(id, ticket.expect("a number"), now);
                        let left = done.expect("the agent did not know what it had asked for").left;
                        assert_eq!(left, Bytes::ZERO, "all that client {number} was asked for came");
                    }
                }
            }
            Event::Obey(number) => {
                let shim = &mut self.shims[number];
                match shim.inbox.pop_front().expect("a message") {
                    ToShim::Grant(amount) => shim.balance += amount,
                    ToShim::SwapOut(amount) => shim.leaving = Some(amount),
                }
            }
            Event::GiveBack(number) => self.shims[number].give_back(),
            Event::Map(number) => self.shims[number].resident += 1,
            Event::Begin => {
                let used = std::array::from_fn(|number| self.shims[number].resident);
                self.reading = Some(Begun { at: now, used });
            }
            Event::Read => self.read(),
            Event::Kill(number) => {
                self.bounds.kills -= 1;
                if let Some(id) = self.client(number) {
                    self.ledger.exited(id, now);
                }
                let resident = self.shims[number].resident;
                self.shims[number] = Shim { resident, dead: true, ..Shim::default() };
            }
            Event::Vanish(number) => self.shims[number].resident = 0,
            Event::Restart => {
                self.bounds.restarts -= 1;
                self.ledger = Ledger::new();
                self.reading = None;
                for shim in &mut self.shims {
                    (shim.known, shim.looked, shim.step, shim.looked_total) = (false, 0, 0, false);
                    shim.inbox.clear();
                    shim.outbox.clear();
                    shim.leaving = None;
                }
            }
            Event::Hello(number) => {
                let shim = &mut self.shims[number];
                shim.known = true;
                let held = Held {
                    device: CARD,
                    granted: pieces(shim.balance),
                    resident: pieces(shim.resident),
                    total: pieces(self.bounds.wanted),
                };
                let hello = Hello {
                    release: "1".to_owned(),
                    running: false,
                    devices: vec![held],
                    arenas: 0,
                    bypass: false,
                };
                self.ledger.hello(World::process(number), SessionId(now.0), &hello, now);
            }
        }
    }

    /// Books a decision, as the conductor does, and sends what that says.
    fn decided(&mut self, decision: &Decision) {
        let now = self.now();
        let booked = self.ledger.book(decision, &Settings::default(), now);
        let Booked { client, message, .. } = booked.expect("the client is told");
        let process = self.ledger.client(client).expect("a client").process();
        let number = (0..CLIENTS).find(|number| World::process(*number) == process).expect("a shim");
        let (message, ticket) = ToShim::read(&message);
        let shim = &mut self.shims[number];
        shim.inbox.push_back(message);
        shim.ticket = ticket.or(shim.ticket);
    }

    /// The reading that was begun arrives, after a look at all counters.
    fn read(&mut self) {
        let Begun { at, used } = self.reading.take().expect("a reading");
        let now = self.now();
        for number in 0..CLIENTS {
            if self.shims[number].dead {
                continue;
            }
            let Some(id) = self.client(number) else { continue };
            let shim = &mut self.shims[number];
            if shim.looked_total {
                shim.step = shim.step.max(shim.looked.abs_diff(shim.resident));
            }
            (shim.looked, shim.looked_total) = (shim.resident, true);
            let held = Holdings {
                resident: pieces(shim.resident),
                swapped: pieces(self.bounds.wanted - shim.resident),
                ..Holdings::default()
            };
            let page = Page { holdings: vec![(CARD, held)], ..Page::default() };
            self.ledger.sample(id, &page, now);
        }
        let per_process = (0..CLIENTS).filter(|number| used[*number] > 0);
        let reading = Reading {
            device: CARD,
            index: 0,
            name: "a card".to_owned(),
            total: pieces(self.bounds.card),
            link: None,
            used: pieces(used.iter().sum()),
            per_process: per_process
                .map(|number| (World::process(number).pid, pieces(used[number])))
                .collect(),
        };
        let settings = Settings { reserve: Bytes::ZERO, ..Settings::default() };
        self.ledger.reading(&reading, at, &settings, now);
        self.ledger.bury(&settings, now);
    }

    /// The most that could come to lie on the card without the agent doing anything more.
    fn exposure(&self) -> u64 {
        let could = |shim: &Shim| {
            let grant = |message: &ToShim| if let ToShim::Grant(amount) = message { *amount } else { 0 };
            let coming: u64 = shim.inbox.iter().map(grant).sum();
            if shim.dead { shim.resident } else { shim.balance + coming }
        };
        self.shims.iter().map(could).sum()
    }

    /// What tells this state from others.
    fn key(&self) -> u128 {
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let id = self.client(number).or_else(|| self.buried_late(number));
                let booked = id.and_then(|id| self.ledger.client(id)).map(|client| {
                    let fresh_death = client
                        .exited()
                        .map(|exited| self.reading.as_ref().is_some_and(|reading| reading.at > exited));
                    let holding = client.devices().get(&CARD).map(|holding| {
                        let left = holding.outgoing().map(|outgoing| outgoing.left);
                        (holding.granted(), holding.needed(), left, holding.complete(), holding.measured())
                    });
                    (fresh_death, holding)
                });
                let used = self.reading.as_ref().map(|reading| reading.used[number]);
                (Shim { ticket: None, ..self.shims[number].clone() }, booked, used)
            })
            .collect();
        clients.sort();
        let began = self.reading.as_ref().map(|reading| reading.at);
        let device = self.ledger.device(CARD).map(|device| {
            let unseen = |after: bool| -> Bytes {
                let since = began.unwrap_or(self.now());
                let given = device.unconfirmed().iter();
                given.filter(|(at, _)| (*at >= since) == after).map(|(_, bytes)| *bytes).sum()
            };
            (device.foreign(), unseen(false), unseen(true), self.ledger.grantable(CARD, self.now()).is_some())
        });
        digest(&(clients, device, self.reading.is_some(), self.bounds.kills, self.bounds.restarts))
    }

    /// A client that ended and is still on the books.
    fn buried_late(&self, number: usize) -> Option<ClientId> {
        let mut clients = self.ledger.clients().values();
        clients
            .find(|client| client.process() == World::process(number))
            .map(nvshare_agent_core::ledger::Client::id)
    }
}

impl Shim {
    /// One piece goes: memory that is not used, or memory whose contents are copied; the message follows the release.
    fn give_back(&mut self) {
        let left = self.leaving.expect("it was told to");
        if left == 0 || self.balance == 0 {
            self.leaving = None;
            self.outbox.push_back(ToAgent::Done);
            return;
        }
        if self.resident == self.balance {
            self.resident -= 1;
        }
        self.balance -= 1;
        self.leaving = Some(left - 1);
        self.outbox.push_back(ToAgent::Released);
    }
}

/// Two hashes: of a few million states no two agree in both.
fn digest(value: &impl Hash) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, value).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// What happened, for people.
fn story(world: &World) -> Vec<Event> {
    let mut events: Vec<Event> = std::iter::successors(world.past.as_deref(), |past| past.before.as_deref())
        .map(|past| past.event)
        .collect();
    events.reverse();
    events
}

/// Tries everything from the beginning. How many states there are.
fn explore(bounds: Bounds) -> usize {
    let first = World::new(bounds);
    let mut seen = HashSet::from([first.key()]);
    let mut ahead = vec![first];
    let mut full = false;
    while let Some(world) = ahead.pop() {
        for event in world.events() {
            let mut next = world.clone();
            next.happen(event);
            assert!(
                next.exposure() <= bounds.card,
                "the clients could have {} of {} pieces after {:?}",
                next.exposure(),
                bounds.card,
                story(&next)
            );
            full |= next.shims.iter().map(|shim| shim.resident).sum::<u64>() == bounds.card;
            if seen.insert(next.key()) {
                ahead.push(next);
            }
        }
    }
    assert!(full, "the card was never full: the model does not reach what it should check");
    println!("{bounds:?}: {} states", seen.len());
    seen.len()
}

#[test]
fn in_no_reachable_state_could_three_clients_exceed_the_card() {
    explore(Bounds { card: 2, wanted: 2, queue: 2, kills: 0, restarts: 0 });
}

#[test]
fn nor_when_one_is_killed_at_any_moment() {
    explore(Bounds { card: 2, wanted: 2, queue: 1, kills: 1, restarts: 0 });
}

#[test]
fn nor_when_another_agent_takes_over_and_one_is_killed_at_any_moment() {
    explore(Bounds { card: 2, wanted: 1, queue: 1, kills: 1, restarts: 1 });
}
