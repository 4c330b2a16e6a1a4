//! What the uprobes saw, booked: memory of every process, and which of a client's is in use. Any process can make the agent
//! remember as much as it likes, so there is one bound for all of it together, besides those for each. Where it bites, the
//! books of who came last are marked as inexact, and what is not known to be hot or cold is moved as if it were hot.

use nvshare_common::ids::ClientId;

use super::{Ledger, Observed, Recency};
use crate::moment::Moment;
use crate::observation::What;
use crate::process::Process;

/// For all books and all recency together, in bytes as counted by the two below.
const ALL: usize = 64 << 20;
/// An entry of a book: its key and value, and its part of the tree or table around them.
const ENTRY: usize = 64;
/// A range with its recency.
const RANGE: usize = 40;

impl Ledger {
    /// Books what was seen of a process; what is known of it then. At most [`Observed::PROCESSES`] are known at a time.
    pub fn observe(&mut self, process: Process, what: &What) -> Option<&Observed> {
        if self.observed.len() >= Observed::PROCESSES && !self.observed.contains_key(&process) {
            return None;
        }
        let observed = self.observed.entry(process).or_default();
        self.remembered -= ENTRY * observed.entries();
        observed.book(what, ALL.saturating_sub(self.remembered) / ENTRY);
        self.remembered += ENTRY * observed.entries();
        Some(observed)
    }

    /// The name of a process that is known.
    pub fn observed_named(&mut self, process: Process, name: &str) {
        if let Some(observed) = self.observed.get_mut(&process) {
            name.clone_into(&mut observed.name);
        }
    }

    /// What was seen says which memory of a client is in use.
    pub fn warm(&mut self, client: ClientId, what: &What, now: Moment) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        let recency = &mut client.recency;
        self.remembered -= RANGE * recency.ranges();
        match what {
            What::Mapped(range, _) | What::Allocated(_, range) => {
                recency.mapped(*range, ALL.saturating_sub(self.remembered) / RANGE, now);
            }
            What::Launched { parameters, at } => recency.launched(parameters, *at),
            What::Freed(address) => recency.freed(*address),
            What::Exec => recency.clear(),
            _ => {}
        }
        self.remembered += RANGE * recency.ranges();
    }

    /// The process ended or became another program.
    pub fn observed_gone(&mut self, process: Process) {
        if let Some(observed) = self.observed.remove(&process) {
            self.remembered -= ENTRY * observed.entries();
        }
    }

    /// A client is gone, with what it used.
    pub(super) fn cooled(&mut self, recency: &Recency) {
        self.remembered -= RANGE * recency.ranges();
    }

    /// How many bytes that is, as it is counted.
    pub fn remembered(&self) -> usize {
        self.remembered
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
    use nvshare_common::probe::Call;
    use nvshare_common::protocol::Hello;

    use super::*;
    use crate::ledger::SessionId;
    use crate::settings::Settings;

    fn process(pid: u32) -> Process {
        Process { pid, start: 1 }
    }

    fn allocated(number: u64) -> What {
        let range = DeviceRange { start: DevicePtr(number << 12), bytes: Bytes(16) };
        What::Allocated(Call::Alloc, range)
    }

    #[test]
    fn all_processes_together_cannot_make_the_agent_remember_more_than_it_may() {
        let mut ledger = Ledger::new();
        let before = process(1);
        ledger.observe(before, &allocated(0));
        // Each alone may have a sixty-fourth of it.
        for pid in 2..80 {
            for number in 0..16_384 {
                ledger.observe(process(pid), &allocated(number));
            }
        }
        assert!(ledger.remembered() <= ALL + 2 * ENTRY && ledger.remembered() > ALL - 2 * ENTRY);
        let seen = |ledger: &Ledger, pid| ledger.observed()[&process(pid)].clone();
        assert!(!seen(&ledger, 2).is_unsure() && seen(&ledger, 79).is_unsure());
        assert_eq!(seen(&ledger, 2).for_people(None).allocated, Bytes(16 * 16_384));
        // Room that one leaves is there for others.
        ledger.observed_gone(process(2));
        ledger.observe(before, &allocated(1));
        assert_eq!(seen(&ledger, 1).for_people(None).allocated, Bytes(32));
        for pid in 1..80 {
            ledger.observed_gone(process(pid));
        }
        assert_eq!(ledger.remembered(), 0);
    }

    #[test]
    fn the_recency_of_ranges_counts_too_and_goes_with_them() {
        let mut ledger = Ledger::new();
        let now = Moment(1) + Duration::from_secs(1);
        let hello =
            Hello { release: "1".into(), running: true, bypass: false, devices: Vec::new(), arenas: 0 };
        let clients: Vec<ClientId> = (0..120)
            .map(|number| ledger.hello(process(number), SessionId(u64::from(number)), &hello, now))
            .collect();
        for client in &clients {
            for number in 0..16_384 {
                ledger.warm(*client, &allocated(number), now);
            }
        }
        assert!(ledger.remembered() <= ALL);
        let recency = |ledger: &Ledger, client| ledger.client(client).unwrap().recency.ranges();
        assert_eq!((recency(&ledger, clients[0]), recency(&ledger, clients[119])), (16_384, 0));
        ledger.warm(clients[0], &What::Freed(DevicePtr(0)), now);
        ledger.warm(clients[119], &allocated(7), now);
        assert_eq!(recency(&ledger, clients[119]), 1);
        for client in clients {
            ledger.exited(client, now);
        }
        ledger.bury(&Settings::default(), now + Duration::from_hours(1));
        assert_eq!(ledger.remembered(), 0);
    }
}
