//! One device's account: what NVML shows, how much of it belongs to nobody who can be told, and so what may be granted.

use std::collections::BTreeMap;
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId, Ticket};

use super::holding::{Plausible, STEP};
use super::readers::readers;
use crate::moment::Moment;
use crate::reading::Reading;
use crate::settings::Settings;

/// How old a reading may be that a grant relies on.
const FRESH: Duration = Duration::from_millis(250);
/// How long room that was made for a driver is kept for it.
const KEPT: Duration = Duration::from_millis(200);
/// How long somebody must have come too late before its driver is refused for that: one look proves nothing.
const LATE: Duration = Duration::from_secs(1);

/// A GPU.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) total: Bytes,
    pub(super) link: Option<u64>,
    pub(super) capacity: Bytes,
    pub(super) reserve: Bytes,
    /// Host memory that clients on it have for shadows, at the last decision.
    pub(super) shadows: Bytes,
    /// The part of the whole reserve that is for drivers, and not for pinning.
    for_drivers: Bytes,
    pub(super) latecomers: Vec<ClientId>,
    /// Since when there have been some.
    pub(super) late_since: Moment,
    pub(super) used: Bytes,
    pub(super) per_process: BTreeMap<u32, Bytes>,
    pub(super) foreign: Bytes,
    /// What of that may be managed memory, which the driver moves out of the way.
    pub(super) evictable: Bytes,
    /// When a step of that was last refuted.
    pub(super) refuted: Option<Moment>,
    pub(super) read_began: Moment,
    pub(super) unconfirmed: Vec<(Moment, Bytes)>,
    pub(super) rooms: Vec<Headroom>,
    /// How much of the reserve is lent.
    pub(super) lent: Bytes,
    /// In use, and ascribed to no process by NVML.
    pub(super) rest: Bytes,
    /// `foreign` is known from a reading that may be relied on.
    pub(super) settled: bool,
}

impl Device {
    readers! {
        /// NVML's number.
        index: u32,
        /// The product.
        name: &str,
        /// All memory.
        total: Bytes,
        /// What its link can carry each way, in bytes per second.
        link: Option<u64>,
        /// What the agent may use: the smaller of `total` and the configured capacity.
        capacity: Bytes,
        /// Never granted. A part of it may be lent: see `admission`.
        reserve: Bytes,
        /// Clients that came last and leave one that ran before no room to run: they get no more.
        latecomers: &[ClientId],
        /// In use, by the last reading.
        used: Bytes,
        /// By process, by the last reading.
        per_process: &BTreeMap<u32, Bytes>,
        /// Used and held by no client: contexts and other overhead of clients, and everybody else.
        foreign: Bytes,
        /// What of that may be managed memory, which the driver moves out of the way.
        evictable: Bytes,
        /// When the last reading began.
        read_began: Moment,
        /// What was given back, and when, since the last reading began: nothing confirms yet that it is free.
        unconfirmed: &[(Moment, Bytes)],
        /// Room that drivers want.
        rooms: &[Headroom],
    }
}

/// What a client's driver wants for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Whose driver.
    pub client: ClientId,
    /// The shim's number for the request.
    pub ticket: Ticket,
    /// Where.
    pub device: DeviceId,
    /// How much.
    pub bytes: Bytes,
    /// Since when.
    pub since: Moment,
    /// When it was promised; kept free for a moment from then on.
    pub made: Option<Moment>,
    /// With what its client asked for besides it is more than [`Headroom::SMALL`].
    pub large: bool,
    /// Memory is taken from others for it; otherwise it is made when there happens to be room.
    pub presses: bool,
}

impl Headroom {
    /// A context, or a module: what one client has asked for up to here others always make room for, for everybody has to
    /// begin.
    pub const SMALL: Bytes = Bytes::GIB;
    /// How many requests of one client may be open.
    pub const AT_ONCE: usize = 16;
    /// How many of the clients of one cgroup: all of them are weighed at every decision.
    pub const OF_A_CGROUP: usize = 128;
}

impl Device {
    /// All that grants may add up to, as far as it is known to be there, and a step further. Negative when others hold more than
    /// there is.
    pub fn budget(&self) -> i64 {
        let foreign = self.foreign.saturating_sub(self.step());
        self.capacity.0 as i64 - self.reserve.0 as i64 - foreign.0 as i64
    }

    /// Whether the last reading is recent enough to grant by.
    pub fn fresh(&self, now: Moment) -> bool {
        self.settled && now.since(self.read_began) < FRESH
    }

    /// Whether the last reading began after `since`, and everybody is known.
    pub(crate) fn read_since(&self, since: Moment) -> bool {
        self.settled && self.read_began > since
    }

    /// Whether the client's driver gets nothing more either: it came too late, and not only by one look.
    pub fn refuses(&self, client: ClientId, now: Moment) -> bool {
        self.latecomers.contains(&client) && now.since(self.late_since) >= LATE
    }

    /// What may be granted right now of what is `free`: NVML was read lately, and what was given back since does not
    /// count.
    pub fn grantable(&self, now: Moment, free: impl FnOnce() -> i64) -> Option<i64> {
        self.fresh(now).then(|| free() - self.unseen().0 as i64)
    }

    /// What was given back and is not seen to be free.
    pub fn unseen(&self) -> Bytes {
        self.unconfirmed.iter().map(|(_, bytes)| *bytes).sum()
    }

    /// The most that the process can hold here without a grant: what NVML showed, and what it may have taken since where
    /// it is known to be at work here.
    pub(super) fn plausible(&self, pid: u32) -> Plausible {
        if self.read_began == Moment::NEVER {
            return Plausible::Unknown;
        }
        let listed = self.per_process.get(&pid).map(|bytes| *bytes + Bytes(2 * STEP));
        Plausible::Most { bytes: listed.unwrap_or(self.rest).min(self.total), total: self.total }
    }

    pub(super) fn given_back(&mut self, bytes: Bytes, now: Moment) {
        let many = self.unconfirmed.len() >= 64;
        match self.unconfirmed.last_mut() {
            // Whoever gives back in crumbs does not make the list long.
            Some((at, sum)) if many => {
                *at = now;
                *sum += bytes;
            }
            _ => self.unconfirmed.push((now, bytes)),
        }
    }

    /// Bytes to keep free for drivers beyond what the reserve covers.
    pub fn room(&self) -> Bytes {
        let pressing = self.rooms.iter().filter(|room| room.presses);
        pressing.map(|room| room.bytes).sum::<Bytes>().saturating_sub(self.reserve)
    }

    pub(super) fn limit(&mut self, settings: &Settings) {
        self.capacity = settings.capacity.map_or(self.total, |capacity| capacity.min(self.total));
        // What is lent of it stays lent until that is decided anew.
        self.reserve = self.whole_reserve(settings).saturating_sub(self.lent);
        self.for_drivers = settings.reserve.min(self.capacity);
    }

    /// How much less there may be than a client was told a moment ago, and it gets that all the same: its own driver and engine
    /// took the rest meanwhile, which is what half of the reserve for drivers is for.
    pub(super) fn slippage(&self) -> Bytes {
        Bytes(self.for_drivers.0 / 2).min(self.reserve)
    }

    /// What is for drivers, lent or not: for what they take by themselves, and for shadows that will be pinned.
    pub(super) fn whole_reserve(&self, settings: &Settings) -> Bytes {
        (settings.reserve + settings.pins(self.capacity, self.shadows)).min(self.capacity)
    }

    pub(super) fn read(&mut self, reading: &Reading, began: Moment, settings: &Settings) {
        self.index = reading.index;
        self.name.clone_from(&reading.name);
        self.total = reading.total;
        self.used = reading.used;
        self.link = reading.link;
        self.per_process.clone_from(&reading.per_process);
        self.rest = self.used.saturating_sub(self.per_process.values().copied().sum());
        self.read_began = began;
        self.unconfirmed.retain(|(at, _)| *at >= began);
        self.limit(settings);
        self.rooms.retain(|room| room.made.is_none_or(|made| began.since(made) < KEPT));
    }

    /// Takes the foreign bytes from the reading. While clients move memory, what they held at the very moment of the
    /// reading is only known to lie `least..=most`; the previous figure stands unless that disproves it. It is no figure
    /// to rely on while there may be clients that are not known.
    pub(super) fn settle(&mut self, least: Bytes, most: Bytes, all_known: bool) {
        let (low, high) = (self.used.saturating_sub(most), self.used.saturating_sub(least));
        self.foreign = if self.settled { self.foreign.clamp(low, high) } else { high };
        self.settled = all_known;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_was_made_is_kept_until_a_reading_can_show_what_became_of_it() {
        let mut device = Device::default();
        let made = Moment(1_000_000_000);
        device.rooms.push(Headroom {
            client: ClientId(1),
            ticket: Ticket(1),
            device: DeviceId([1; 16]),
            bytes: Bytes::GIB,
            since: made,
            made: Some(made),
            large: false,
            presses: true,
        });
        let reading = Reading {
            device: DeviceId([1; 16]),
            index: 0,
            name: String::new(),
            total: Bytes::GIB,
            link: None,
            used: Bytes::ZERO,
            per_process: BTreeMap::new(),
        };
        // However late it comes, it shows a moment before the driver took it.
        device.read(&reading, made + KEPT / 2, &Settings::default());
        assert_eq!(device.rooms.len(), 1);
        device.read(&reading, made + KEPT, &Settings::default());
        assert!(device.rooms.is_empty());
    }
}
