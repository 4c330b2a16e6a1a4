//! Managed memory: a running program faults its part in, and the driver takes what it needs of those who ran least lately.

use nvshare_agent_core::observation::Paged;
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;

use crate::{LINK, World, card};

/// What faults move in a millisecond: a sixth of the link, as seen on an H200.
const FAULTS: u64 = LINK / 6;
/// How often the observer tells what was moved, in microseconds.
const TOLD: u64 = 100_000;

/// The managed memory of one client, on the first card.
#[derive(Clone, Debug, Default)]
pub struct Managed {
    /// What it works on.
    pub bytes: u64,
    /// What of that is on the card.
    pub here: u64,
    /// Milliseconds in which it worked, for all of it was there.
    pub worked: u64,
    used_at: u64,
    untold: Paged,
}

impl World {
    /// A process starts that works without pause on managed memory.
    pub fn pager(&mut self, bytes: u64) -> usize {
        let index = self.start();
        self.allocate(index, 0, 0);
        self.shims[index].works = true;
        self.managed.insert(index, Managed { bytes, ..Managed::default() });
        index
    }

    /// What of the first card managed memory takes.
    pub(crate) fn managed_here(&self) -> u64 {
        self.managed.values().map(|managed| managed.here).sum()
    }

    /// What of a card plain memory could have of that.
    pub(crate) fn evictable(&self, device: DeviceId) -> u64 {
        if device == card(0) { self.managed_here() } else { 0 }
    }

    /// Managed memory gives way to what has been made.
    pub(crate) fn evict(&mut self, device: DeviceId) {
        let mut lacking = self.used(device).saturating_sub(self.cards[&device]);
        let mut pagers: Vec<&mut Managed> = self.managed.values_mut().collect();
        pagers.sort_by_key(|managed| managed.used_at);
        for managed in pagers {
            let gives = lacking.min(managed.here);
            lacking -= gives;
            managed.here -= gives;
            managed.untold.to_host += Bytes(gives);
        }
    }

    pub(crate) fn fault(&mut self) {
        let indices: Vec<usize> = self.managed.keys().copied().collect();
        for index in &indices {
            if !self.shims[*index].alive {
                self.managed.remove(index);
            } else if self.running(*index) && self.shims[*index].works {
                self.fault_in(*index);
            }
        }
        if self.now.is_multiple_of(TOLD) {
            let (now, settings) = (self.moment(), self.core.settings.clone());
            for (index, managed) in &mut self.managed {
                let told = std::mem::take(&mut managed.untold);
                if told != Paged::default() {
                    let client = self.shims[*index].id;
                    self.core.ledger.paged(client, Some(card(0)), told, &settings, now);
                }
            }
        }
    }

    fn fault_in(&mut self, index: usize) {
        let card_bytes = self.cards[&card(0)];
        let free = card_bytes.saturating_sub(self.used(card(0)));
        let one = self.managed.get_mut(&index).unwrap();
        one.used_at = self.now;
        // Of what does not fit, and is used in turns, nothing is there when it is needed.
        let most = one.bytes.min(card_bytes / 8 * 7);
        let wanted = (most - one.here).min(FAULTS);
        if wanted == 0 {
            one.worked += 1;
            return;
        }
        let mut others: Vec<usize> = self.managed.keys().copied().filter(|other| *other != index).collect();
        others.sort_by_key(|other| self.managed[other].used_at);
        let mut lacking = wanted.saturating_sub(free);
        for other in others {
            let gives = lacking.min(self.managed[&other].here);
            lacking -= gives;
            let other = self.managed.get_mut(&other).unwrap();
            other.here -= gives;
            other.untold.to_host += Bytes(gives);
        }
        let one = self.managed.get_mut(&index).unwrap();
        one.here += wanted - lacking;
        one.untold.to_device += Bytes(wanted - lacking);
    }
}
