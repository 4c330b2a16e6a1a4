//! What must be true of a ledger at any time.

use nvshare_common::bytes::Bytes;

use super::Ledger;

impl Ledger {
    /// A1 as far as the ledger alone can tell: nothing was granted that was not there when it was granted. What is granted
    /// beyond a device's budget was so because the budget shrank (foreign memory), or a client came with it.
    pub fn check(&self) -> Result<(), String> {
        for client in self.clients.values() {
            for (device, holding) in &client.devices {
                if holding.granted > Bytes(1 << 49) {
                    return Err(format!("client {} has {} on {device}", client.id.0, holding.granted));
                }
                if client.session.is_none() && (holding.outgoing.is_some() || holding.reclaiming.is_some()) {
                    return Err(format!("client {} has commands and no session", client.id.0));
                }
            }
            if client.exited.is_none() && self.by_process.get(&client.process) != Some(&client.id) {
                return Err(format!("client {} cannot be found by its process", client.id.0));
            }
        }
        Ok(())
    }
}
