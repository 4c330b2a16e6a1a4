//! What must hold after each step, whatever was decided.

use crate::World;

impl World {
    /// From the moment when nothing is under way any more, a pinned client loses nothing.
    pub(crate) fn check_pinned(&mut self) {
        for (index, shim) in self.shims.iter().enumerate() {
            let client =
                self.core.ledger.client(shim.id).filter(|client| shim.alive && client.orders().pinned);
            let Some(client) = client else {
                self.pinned.remove(&index);
                continue;
            };
            let under_way = !shim.outs.is_empty()
                || client.devices().values().any(|holding| holding.outgoing().is_some());
            if let Some(before) = self.pinned.get(&index) {
                assert_eq!(shim.moved_out, *before, "client {index} is pinned and was swapped out");
            } else if !under_way {
                self.pinned.insert(index, shim.moved_out);
            }
        }
    }

    pub(crate) fn check(&self) {
        for (index, shim) in self.shims.iter().enumerate() {
            for (device, resident) in &shim.resident {
                let balance = shim.balance.get(device).copied().unwrap_or_default();
                assert!(*resident <= balance, "client {index} holds {resident} with a balance of {balance}");
                if let Some(client) = self.core.ledger.client(shim.id)
                    && shim.alive
                {
                    let booked = client.devices().get(device).map_or(0, |holding| holding.granted().0);
                    assert!(booked >= balance, "client {index} has {balance}, booked are {booked}");
                }
            }
        }
        for (device, total) in &self.cards {
            assert!(!self.strict || self.used(*device) <= *total, "card over-full");
            let granted = self.core.ledger.granted(*device).0;
            assert!(!self.strict || granted <= *total, "granted {granted} of {total}");
        }
    }
}
