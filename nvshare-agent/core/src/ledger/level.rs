//! Who begins level with whom: runtimes are compared card by card (A5), for who shares no card shares no turns.

use std::collections::BTreeMap;
use std::time::Duration;

use nvshare_common::ids::DeviceId;

use super::{Client, Ledger};
use crate::moment::Moment;
use crate::order::Priority;

/// The smallest runtimes of those who run or want to, on each card and by priority: only equals are compared.
#[derive(Default)]
pub(super) struct Least(BTreeMap<DeviceId, [Runtimes; 3]>);

/// Runtimes on one card, of one priority.
#[derive(Clone, Copy, Default)]
struct Runtimes {
    /// Of those who contend.
    least: Option<Duration>,
    /// Of all, where nobody does.
    most: Duration,
}

impl Runtimes {
    fn level(self) -> Duration {
        self.least.unwrap_or(self.most)
    }
}

impl Least {
    /// Where a client begins: level on each of its cards, and ahead of nobody.
    pub(super) fn level(&self, client: &Client, priority: Priority) -> Duration {
        self.levels(client, priority).max().unwrap_or_default()
    }

    /// What who ran least on any of its cards has run. `None`: nobody is known there.
    pub(super) fn lowest(&self, client: &Client, priority: Priority) -> Option<Duration> {
        self.levels(client, priority).min()
    }

    fn levels(&self, client: &Client, priority: Priority) -> impl Iterator<Item = Duration> {
        let cards = client.devices.keys().filter_map(|device| self.0.get(device));
        cards.map(move |card| card[priority as usize].level())
    }
}

impl Ledger {
    /// See [`Least`]. Who has not begun level yet counts for nothing: it has not run beside anybody here.
    pub(super) fn least_runtimes(&self, now: Moment) -> Least {
        let mut found = Least::default();
        for client in self.clients.values().filter(|client| client.turns.levelled) {
            let contends = client.wants().is_some() || (client.lease().is_some() && client.busy(now));
            let contends = contends && client.commandable() && !client.held_out();
            for device in client.devices.keys() {
                let card = &mut found.0.entry(*device).or_default()[client.orders.priority as usize];
                card.most = card.most.max(client.runtime());
                if contends {
                    card.least =
                        Some(card.least.map_or(client.runtime(), |least| least.min(client.runtime())));
                }
            }
        }
        found
    }
}
