//! What the log says of clients that cannot run, or get no more memory, because of others: once of each, however often it
//! comes and goes. Everywhere else (`status`, `top`, the page, metrics) it is shown as long as it is so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nvshare_common::ids::{ClientId, DeviceId};

use crate::moment::Moment;

/// A client that cannot run for less than this is not worth a line: somebody may be about to give memory back.
const LASTS: Duration = Duration::from_secs(5);

/// What was told.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Since when clients cannot run.
    since: BTreeMap<ClientId, Moment>,
    never: BTreeSet<ClientId>,
    late: BTreeSet<(ClientId, DeviceId)>,
}

impl Said {
    /// A client came too late on a device.
    pub(super) fn late(&mut self, client: ClientId, device: DeviceId) {
        if self.late.insert((client, device)) {
            tracing::warn!(
                client = client.0, %device,
                "came when the device was full: it gets no more memory, so that one that came before can go on"
            );
        }
    }

    /// These cannot run now, and why.
    pub(super) fn hindered(&mut self, hindered: &BTreeMap<ClientId, String>, now: Moment) {
        self.since.retain(|client, _| hindered.contains_key(client));
        for (client, why) in hindered {
            let since = *self.since.entry(*client).or_insert(now);
            if now.since(since) >= LASTS && self.never.insert(*client) {
                tracing::warn!(client = client.0, why, "cannot run as things are, and waits");
            }
        }
    }

    /// The client is gone.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.since.remove(&client);
        self.never.remove(&client);
        self.late.retain(|(of, _)| *of != client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_run_for_a_while_is_told_once() {
        let (client, mut told) = (ClientId(7), Said::default());
        let why = BTreeMap::from([(client, "needs more".to_owned())]);
        let mut lines = |seconds: u64, hindered: &BTreeMap<ClientId, String>| {
            told.hindered(hindered, Moment(1) + Duration::from_secs(seconds));
            told.never.len()
        };
        assert_eq!(lines(0, &why) + lines(4, &why), 0);
        // For a moment it could.
        assert_eq!(lines(5, &BTreeMap::new()) + lines(6, &why) + lines(10, &why), 0);
        assert_eq!((lines(11, &why), lines(12, &BTreeMap::new()), lines(60, &why)), (1, 1, 1));
        told.forget(client);
        assert!(told.never.is_empty() && told.since.is_empty());
    }
}
