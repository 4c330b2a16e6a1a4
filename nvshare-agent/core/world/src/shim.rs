//! A process with a shim: what it is, and what it does as time passes. It obeys the agent, or not, as a test wants.

use std::collections::{BTreeMap, VecDeque};

use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_core::process::Process;
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};
use nvshare_common::protocol::{Purpose, ToAgent, ToShim};

use crate::{LINK, World};

/// One process with a shim.
#[derive(Clone, Debug)]
pub struct Shim {
    /// Which.
    pub process: Process,
    /// The agent's number for it.
    pub id: ClientId,
    /// Where it is connected.
    pub session: Option<SessionId>,
    /// Whether it lives.
    pub alive: bool,
    /// By card: what it may hold.
    pub balance: BTreeMap<DeviceId, u64>,
    /// By card: what it needs.
    pub total: BTreeMap<DeviceId, u64>,
    /// By card: what it holds.
    pub resident: BTreeMap<DeviceId, u64>,
    /// By card: what went to its arenas and has not come back.
    pub(crate) shadow: BTreeMap<DeviceId, u64>,
    /// Its host memory for shadows.
    pub arenas: BTreeMap<ArenaId, u64>,
    /// What it holds beside its memory, on the first card.
    pub overhead: u64,
    /// So much of what it holds on each card can not be moved (any more).
    pub fixed: u64,
    /// It may run.
    pub lease: bool,
    /// It works for so many ms, then pauses for so many.
    pub rhythm: (u64, u64),
    pub(crate) phase: u64,
    /// It has work to do at all.
    pub works: bool,
    /// It stalls whenever it is to stop.
    pub never_drains: bool,
    /// It does not hear that it is to stop.
    pub ignores_stop: bool,
    /// It answers no `Reclaim`.
    pub deaf: bool,
    /// How it answers every swap out without doing anything: with a failure, or as if it had.
    pub swaps_nothing: Option<bool>,
    pub(crate) waiting: bool,
    pub(crate) draining: Option<(Ticket, u64)>,
    pub(crate) outs: Vec<(Ticket, DeviceId, u64, u64)>,
    pub(crate) said_resident: BTreeMap<DeviceId, bool>,
    pub(crate) brought: u64,
    pub(crate) inbox: VecDeque<(u64, ToShim)>,
    pub(crate) outbox: VecDeque<(u64, SessionId, ToAgent)>,
    pub(crate) launches: u64,
    /// Milliseconds in which it ran.
    pub ran: u64,
    /// The longest it waited at the gate, in ms.
    pub waited_most: u64,
    pub(crate) waits_since: Option<u64>,
    /// How often it was told to stop.
    pub stops: u64,
    /// Bytes that went to the host.
    pub moved_out: u64,
    /// Bytes that came to the cards.
    pub moved_in: u64,
    /// By card: the most it may come to need, as it was told.
    pub limit: BTreeMap<DeviceId, u64>,
    /// Its requests for room, and how they were answered.
    pub rooms: BTreeMap<u64, Option<bool>>,
}

impl Shim {
    /// One that has just started, with an open gate.
    pub(crate) fn new(process: Process) -> Shim {
        Shim {
            process,
            id: ClientId(0),
            session: None,
            alive: true,
            balance: BTreeMap::new(),
            total: BTreeMap::new(),
            resident: BTreeMap::new(),
            shadow: BTreeMap::new(),
            arenas: BTreeMap::new(),
            overhead: 0,
            fixed: 0,
            lease: true,
            rhythm: (1, 0),
            phase: 0,
            works: false,
            never_drains: false,
            ignores_stop: false,
            deaf: false,
            swaps_nothing: None,
            waiting: false,
            draining: None,
            outs: Vec::new(),
            said_resident: BTreeMap::new(),
            brought: 0,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            launches: 0,
            ran: 0,
            waited_most: 0,
            waits_since: None,
            stops: 0,
            moved_out: 0,
            moved_in: 0,
            limit: BTreeMap::new(),
            rooms: BTreeMap::new(),
        }
    }

    /// Whether its gate is open.
    pub fn open(&self) -> bool {
        let all = self
            .total
            .iter()
            .all(|(device, total)| self.resident.get(device).copied().unwrap_or_default() == *total);
        self.lease && self.draining.is_none() && all
    }
}

impl World {
    pub(crate) fn act(&mut self, index: usize) {
        if !self.shims[index].alive {
            return;
        }
        while self.shims[index].inbox.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, message) = self.shims[index].inbox.pop_front().unwrap();
            self.obey(index, message);
        }
        let now = self.now;
        if let Some((ticket, until)) = self.shims[index].draining
            && now >= until
        {
            self.shims[index].draining = None;
            if self.shims[index].never_drains {
                self.shims[index].lease = true;
                self.say(index, ToAgent::DrainStalled { ticket });
            } else {
                self.say(index, ToAgent::Stopped { ticket });
            }
        }
        self.move_out(index);
        self.move_in(index);
        self.work(index);
    }

    fn obey(&mut self, index: usize, message: ToShim) {
        let now = self.now;
        match message {
            ToShim::Limit { device, bytes } => {
                self.shims[index].limit.insert(device, bytes.0);
            }
            ToShim::Grant { device, bytes } => {
                *self.shims[index].balance.entry(device).or_default() += bytes.0;
            }
            ToShim::Run => {
                assert!(!self.shims[index].lease, "a second lease for client {index}");
                self.shims[index].lease = true;
            }
            ToShim::Stop { ticket, .. } => {
                let shim = &mut self.shims[index];
                assert!(shim.lease, "client {index} is stopped and does not run");
                shim.stops += 1;
                if !shim.ignores_stop {
                    shim.lease = false;
                    shim.waiting = false;
                    shim.draining = Some((ticket, now + 3000));
                }
            }
            ToShim::SwapOut { ticket, device, bytes, .. } => {
                assert!(!self.shims[index].lease, "client {index} is swapped out while it runs");
                self.shims[index].said_resident.insert(device, false);
                if let Some(admits) = self.shims[index].swaps_nothing {
                    let why = "copy failed".to_owned();
                    let done = ToAgent::SwapOutDone { ticket, copied: Bytes(0), clean: Bytes(0) };
                    self.say(index, if admits { ToAgent::SwapFailed { ticket, why } } else { done });
                    return;
                }
                self.shims[index].outs.push((ticket, device, bytes.0, 0));
            }
            ToShim::Reclaim { .. } if self.shims[index].deaf => {}
            ToShim::Reclaim { ticket, device } => {
                let shim = &mut self.shims[index];
                let balance = shim.balance.entry(device).or_default();
                let kept = shim
                    .resident
                    .get(&device)
                    .copied()
                    .unwrap_or_default()
                    .max(shim.total[&device])
                    .min(*balance);
                let bytes = *balance - kept;
                *balance = kept;
                self.say(index, ToAgent::Released { ticket: Some(ticket), device, bytes: Bytes(bytes) });
                self.say(index, ToAgent::SwapOutDone { ticket, copied: Bytes(0), clean: Bytes(0) });
            }
            ToShim::Room { ticket, made } => {
                self.shims[index].rooms.insert(ticket.0, Some(made));
            }
            // The programs of this world do not ask how large a card is; who is told to run as without an agent is run by
            // the test that is about it.
            ToShim::Size { .. } | ToShim::Unmanaged { .. } | ToShim::Bypassed | ToShim::Pace { .. } => {}
            ToShim::Arena { arena, bytes } => self.take_arena(index, arena, bytes.0),
            ToShim::Trim { bytes } => self.trim(index, bytes.0),
        }
    }

    fn move_out(&mut self, index: usize) {
        let Some((ticket, device, left, copied)) = self.shims[index].outs.first().copied() else { return };
        let shim = &mut self.shims[index];
        let place = shim.place();
        let balance = shim.balance.entry(device).or_default();
        let resident = shim.resident.entry(device).or_default();
        let unused = (*balance - *resident).min(left);
        let moved = (left - unused).min(LINK).min(resident.saturating_sub(shim.fixed)).min(place);
        *resident -= moved;
        *balance -= unused + moved;
        shim.moved_out += moved;
        *shim.shadow.entry(device).or_default() += moved;
        let rest = left - unused - moved;
        let stuck = unused + moved == 0;
        shim.outs[0] = (ticket, device, rest, copied + moved);
        if unused + moved > 0 {
            self.say(index, ToAgent::Released { ticket: Some(ticket), device, bytes: Bytes(unused + moved) });
        }
        if rest == 0 || stuck {
            self.shims[index].outs.remove(0);
            self.say(index, ToAgent::SwapOutDone { ticket, copied: Bytes(copied + moved), clean: Bytes(0) });
        }
    }

    fn move_in(&mut self, index: usize) {
        if !self.shims[index].outs.is_empty() {
            return;
        }
        let devices: Vec<DeviceId> = self.shims[index].total.keys().copied().collect();
        for device in devices {
            let free = self.cards[&device].saturating_sub(self.used(device)) + self.evictable(device);
            let shim = &mut self.shims[index];
            let total = shim.total[&device];
            let balance = shim.balance.get(&device).copied().unwrap_or_default();
            let resident = shim.resident.entry(device).or_default();
            let lacks = total.min(balance).saturating_sub(*resident).min(LINK);
            if lacks > free {
                self.refused_by_card += 1;
                assert!(!self.strict, "the card had no memory for what was granted");
                continue;
            }
            *resident += lacks;
            let shadow = shim.shadow.entry(device).or_default();
            *shadow = shadow.saturating_sub(lacks);
            shim.moved_in += lacks;
            shim.brought += lacks;
            if *resident == total && shim.said_resident.get(&device) == Some(&false) {
                shim.said_resident.insert(device, true);
                let copied = Bytes(std::mem::take(&mut shim.brought));
                self.say(index, ToAgent::Resident { device, copied });
            }
            self.evict(device);
        }
    }

    fn work(&mut self, index: usize) {
        let now = self.now;
        let shim = &mut self.shims[index];
        if !shim.works {
            return;
        }
        if shim.phase >= shim.rhythm.0 {
            shim.phase = (shim.phase + 1) % (shim.rhythm.0 + shim.rhythm.1);
            return;
        }
        if shim.open() {
            shim.phase = (shim.phase + 1) % (shim.rhythm.0 + shim.rhythm.1);
            shim.launches += 1;
            shim.ran += 1;
            shim.waiting = false;
            shim.waits_since = None;
            return;
        }
        let since = *shim.waits_since.get_or_insert(now);
        shim.waited_most = shim.waited_most.max((now - since) / 1000);
        if !shim.waiting {
            shim.waiting = true;
            let total = shim.total.clone();
            for (device, total) in total {
                self.say(index, ToAgent::Want { device, total: Bytes(total), purpose: Purpose::Work });
            }
        }
    }
}
