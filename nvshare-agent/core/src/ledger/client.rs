//! One client: who it is, what is known of it, and what it holds on each device. Its sessions, turns, pauses and moves are in
//! `session`, `turn`, `activity` and `moves`.

use std::collections::BTreeMap;

use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::ids::{ClientId, DeviceId};

use super::activity::Activity;
use super::holding::{Holding, MOST};
use super::moves::Moves;
use super::orders::Orders;
use super::paging::Paging;
use super::readers::readers;
use super::recency::Recency;
use super::session::SessionId;
use super::turn::Turns;
use crate::moment::Moment;
use crate::observation::Counts;
use crate::process::Process;

/// Clients that run together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GangId(pub u64);

/// A look at a client's counter page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Its calls.
    pub calls: Counts,
    /// Threads that wait for the device.
    pub waiting: u64,
    /// What it holds.
    pub holdings: Vec<(DeviceId, Holdings)>,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) id: ClientId,
    pub(super) process: Process,
    pub(super) name: String,
    pub(super) cgroup: String,
    pub(super) shim: String,
    pub(super) gang: GangId,
    pub(super) orders: Orders,
    pub(super) session: Option<SessionId>,
    pub(super) greeted: Moment,
    /// When it lost its session.
    pub(super) disconnected: Option<Moment>,
    pub(super) exited: Option<Moment>,
    pub(super) overdue: bool,
    pub(super) dead: Option<String>,
    pub(super) bypass: bool,
    pub(super) devices: BTreeMap<DeviceId, Holding>,
    /// When it began to use a device, in this session: a limit that counts its context comes from a later reading.
    pub(super) met: BTreeMap<DeviceId, Moment>,
    /// What the driver lately did to its managed memory.
    pub(super) paging: BTreeMap<DeviceId, Paging>,
    pub(super) unmanaged: BTreeMap<DeviceId, String>,
    pub(super) limits: BTreeMap<DeviceId, Bytes>,
    /// What it asked whether it may have, where the answer was yes.
    pub(super) promised: BTreeMap<DeviceId, Bytes>,
    pub(super) sizes: BTreeMap<DeviceId, Bytes>,
    /// It has a counter page.
    pub(super) paged: bool,
    pub(super) accustomed: Bytes,
    /// When its driver last got much room at once.
    pub(super) large_room: Option<Moment>,
    pub(super) calls: Counts,
    pub(super) recency: Recency,
    pub(super) untrusted: Option<String>,
    pub(super) turns: Turns,
    pub(super) activity: Activity,
    pub(super) moves: Moves,
}

impl Client {
    readers! {
        /// The agent's number for it.
        id: ClientId,
        /// Its process.
        process: Process,
        /// The process's name.
        name: &str,
        /// The process's cgroup.
        cgroup: &str,
        /// The shim's release.
        shim: &str,
        /// With whom it runs.
        gang: GangId,
        /// What was ordered for it.
        orders: Orders,
        /// Its session, while there is one.
        session: Option<SessionId>,
        /// When its session began.
        greeted: Moment,
        /// When its process ended.
        exited: Option<Moment>,
        /// NVML showed its memory for too long after that.
        overdue: bool,
        /// The device error that ended it.
        dead: Option<&str>,
        /// Driver work was seen that its shim did not pass: it is never moved.
        bypass: bool,
        /// Where it was told that it runs as without an agent, and why. Nothing is booked there until its next `Hello`.
        unmanaged: &BTreeMap<DeviceId, String>,
        /// The limits it was told.
        limits: &BTreeMap<DeviceId, Bytes>,
        /// The sizes it was told.
        sizes: &BTreeMap<DeviceId, Bytes>,
        /// Something it said cannot be true.
        untrusted: Option<&str>,
        /// What it holds, on devices that are managed or may still turn out to be.
        devices: &BTreeMap<DeviceId, Holding>,
        /// What it needed when everything was last resident.
        accustomed: Bytes,
        /// Its calls by its counter page.
        calls: &Counts,
        /// What its kernels used.
        recency: &Recency,
    }
}

impl Client {
    pub(super) fn new(id: ClientId, process: Process) -> Client {
        Client {
            id,
            process,
            name: String::new(),
            cgroup: String::new(),
            shim: String::new(),
            gang: GangId(id.0),
            orders: Orders::default(),
            session: None,
            greeted: Moment::NEVER,
            disconnected: None,
            exited: None,
            overdue: false,
            dead: None,
            bypass: false,
            devices: BTreeMap::new(),
            met: BTreeMap::new(),
            paging: BTreeMap::new(),
            unmanaged: BTreeMap::new(),
            limits: BTreeMap::new(),
            promised: BTreeMap::new(),
            sizes: BTreeMap::new(),
            paged: false,
            accustomed: Bytes::ZERO,
            large_room: None,
            calls: Counts::default(),
            recency: Recency::default(),
            untrusted: None,
            turns: Turns::default(),
            activity: Activity::default(),
            moves: Moves::default(),
        }
    }

    /// It is swapped out by order.
    pub fn held_out(&self) -> bool {
        self.orders.held_out.is_some()
    }

    /// It said what it needs on `device`.
    pub(super) fn needs(&mut self, device: DeviceId, total: Bytes, now: Moment) {
        if let Some(holding) = self.holding(device) {
            let before = holding.needed;
            holding.need(total);
            holding.growth.asks(before, holding.needed, now);
            holding.page_total = None;
            if holding.needed > holding.granted {
                holding.complete = false;
            }
        }
    }

    /// It said what it cannot move. The reason becomes a metric's label: it is cut to what may be one.
    pub(super) fn unswappable(&mut self, device: DeviceId, reason: &str, bytes: Bytes) {
        let reason: String =
            reason.chars().filter(|c| c.is_ascii_lowercase() || *c == '_').take(24).collect();
        if let Some(holding) = self.holding(device)
            && (holding.unswappable.len() < 16 || holding.unswappable.contains_key(&reason))
        {
            holding.unswappable.insert(reason, bytes.min(MOST));
        }
    }

    /// All of `device` is resident. Says since when memory was granted for it.
    pub(super) fn resident(&mut self, device: DeviceId, now: Moment) -> Option<Moment> {
        let holding = self.devices.get_mut(&device)?;
        if holding.granted >= holding.needed {
            holding.complete = true;
        }
        let since = holding.granting_since.take();
        self.begin_lease(now);
        since
    }

    /// Its counter page was looked at. Says what it no longer holds of what was booked beyond its grants.
    pub(super) fn sample(&mut self, page: &Page, now: Moment) -> Vec<(DeviceId, Bytes)> {
        self.paged = true;
        if page.waiting > 0 || page.calls.application != self.calls.application {
            self.active(now);
        }
        self.calls = page.calls;
        let mut less = Vec::new();
        for (device, held) in &page.holdings {
            if let Some(holding) = self.holding(*device) {
                let before = holding.booked();
                holding.sample(held, now);
                if holding.booked() < before {
                    less.push((*device, before.saturating_sub(holding.booked())));
                }
            }
        }
        less
    }

    /// Everything it needs is resident.
    pub fn complete(&self) -> bool {
        self.devices.values().all(|holding| holding.complete)
    }
}
