//! Who can never run as things are, and why.

use std::collections::BTreeMap;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::gangs::Gang;
use crate::ledger::Ledger;

/// What there is for a gang at best.
pub(super) struct Most {
    /// Of each device, beside what stays there anyway; pinned gangs not counted.
    left: BTreeMap<DeviceId, i64>,
    /// What pinned gangs need.
    pinned: BTreeMap<DeviceId, i64>,
    who: Vec<ClientId>,
    /// Who came last, where that made one impossible that ran before.
    late: BTreeMap<DeviceId, Vec<ClientId>>,
}

impl Most {
    pub(super) fn new(ledger: &Ledger, gangs: &[Gang]) -> Most {
        let left = ledger.devices().iter().map(|(id, device)| (*id, device.promised())).collect();
        let late = ledger.devices().iter().filter(|(_, device)| !device.latecomers().is_empty());
        let late = late.map(|(id, device)| (*id, device.latecomers().to_vec())).collect();
        let mut most = Most { left, pinned: BTreeMap::new(), who: Vec::new(), late };
        // Whoever waits for the memory of the dead, which is about to be seen gone, has not to wait for ever.
        for gang in gangs.iter().filter(|gang| !gang.dying()) {
            for (device, need) in &gang.needs {
                if gang.pinned() {
                    *most.pinned.entry(*device).or_default() += need.needed.0 as i64;
                } else {
                    *most.left.entry(*device).or_default() -= need.floor.0 as i64;
                }
            }
            if gang.pinned() {
                most.who.push(gang.id());
            }
        }
        most
    }

    /// Why the gang would not run even if nobody else contended.
    pub(super) fn never(&self, gang: &Gang) -> Option<String> {
        gang.needs.iter().filter(|(_, need)| need.more() > 0).find_map(|(device, need)| {
            let own = |bytes: Bytes, counts: bool| if counts { bytes.0 as i64 } else { 0 };
            let left = self.left.get(device).copied().unwrap_or_default() + own(need.floor, !gang.pinned());
            let pinned = self.pinned.get(device).copied().unwrap_or_default() - own(need.needed, gang.pinned());
            let needed = need.needed.0 as i64;
            if needed > left {
                let most = Bytes(left.max(0) as u64);
                let late = self.late.get(device).map(Vec::as_slice).unwrap_or_default();
                let because = match late.iter().filter(|late| **late != gang.id()).collect::<Vec<_>>().as_slice() {
                    [] => String::new(),
                    late => {
                        let late: Vec<String> = late.iter().map(|late| late.0.to_string()).collect();
                        format!(" (client {} came last)", late.join(", "))
                    }
                };
                return Some(format!(
                    "needs {} on {device}, where it can have at most {most} beside what cannot be moved{because}: free \
                     memory there, or raise --capacity or --host-memory",
                    need.needed
                ));
            }
            (needed > left - pinned).then(|| {
                let who: Vec<String> =
                    self.who.iter().filter(|who| **who != gang.id()).map(|who| who.0.to_string()).collect();
                format!(
                    "needs {} on {device}, and does not fit there beside what is pinned (client {}): \
                     `nvshare-agent unpin` one of these, or free memory there",
                    need.needed,
                    who.join(", ")
                )
            })
        })
    }
}
