//! What of the agent one process, one cgroup (a container) and all together may take: connections, and messages on them. Both
//! belong to who it is by the kernel's word, so that a new session, or a new process, brings nothing new.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvshare_agent_core::process::Process;
use tokio::time::Instant;

use super::pace::{Allowance, CONNECTION, OF_CGROUP, OF_PROCESS, Pace};

/// How many connections one process may have: its own, an old one that has not ended yet, and itself until its end.
const PER_PROCESS: usize = 5;
/// How many the processes of one cgroup (a container) may have.
const PER_CGROUP: usize = 1024;
/// How many connections there may be in all.
pub(crate) const CONNECTIONS: usize = 8192;
/// How many processes, and cgroups, are known at a time, with and without a connection.
const KNOWN: usize = 2 * CONNECTIONS;

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections(Arc<Mutex<Count>>);

/// By process, by cgroup, in all.
#[derive(Debug, Default)]
struct Count {
    processes: HashMap<Process, Account>,
    cgroups: HashMap<String, Account>,
    all: usize,
    /// Of connections that were turned away before it was known whose they are, or because there are too many.
    refusals: Option<Pace>,
}

/// Of a process, or a cgroup. It outlives the last connection until its bucket is full again, a few seconds at most.
#[derive(Debug)]
struct Account {
    connections: usize,
    pace: Pace,
}

/// One connection, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    connections: Connections,
    process: Process,
    cgroup: String,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more; `None` when there are too many.
    pub(super) fn count(&self, process: Process, cgroup: &str, now: Instant) -> Option<Counted> {
        let mut count = self.lock();
        let own = count.processes.get(&process).map_or(0, |account| account.connections);
        let siblings = count.cgroups.get(cgroup).map_or(0, |account| account.connections);
        if count.all >= CONNECTIONS || own >= PER_PROCESS || siblings >= PER_CGROUP {
            return None;
        }
        count.all += 1;
        more(&mut count.processes, process, OF_PROCESS, now);
        more(&mut count.cgroups, cgroup.to_owned(), OF_CGROUP, now);
        Some(Counted { connections: self.clone(), process, cgroup: cgroup.to_owned() })
    }

    /// A connection was turned away at the door. Whether that is worth the word to the conductor that each is: whoever knocks
    /// without an end wakes it no more often than one client may.
    pub(super) fn turned_away(&self, now: Instant) -> bool {
        let mut count = self.lock();
        let refusals = count.refusals.get_or_insert_with(|| Pace::new(OF_PROCESS, now));
        let told = refusals.has_one(now);
        if told {
            refusals.heard(1, now);
        }
        told
    }

    /// Forgets who has no connection, and had nothing to say lately.
    pub(super) fn forget(&self, now: Instant) {
        let mut count = self.lock();
        forget(&mut count.processes, now);
        forget(&mut count.cgroups, now);
    }
}

fn more<K: Eq + Hash>(accounts: &mut HashMap<K, Account>, key: K, of: Allowance, now: Instant) {
    if accounts.len() >= KNOWN && !accounts.contains_key(&key) {
        forget(accounts, now);
        if accounts.len() >= KNOWN {
            // So many in a second, from many cgroups: only those that are here can be known.
            accounts.retain(|_, account| account.connections > 0);
        }
    }
    let account = accounts.entry(key).or_insert_with(|| Account { connections: 0, pace: Pace::new(of, now) });
    account.connections += 1;
}

/// Whoever has no connection any more is forgotten later: its bucket says when.
fn less<K: Eq + Hash>(accounts: &mut HashMap<K, Account>, key: &K) {
    if let Some(account) = accounts.get_mut(key) {
        account.connections -= 1;
    }
}

fn forget<K>(accounts: &mut HashMap<K, Account>, now: Instant) {
    accounts.retain(|_, account| account.connections > 0 || !account.pace.is_full(now));
}

impl Counted {
    /// It came. How long to wait before anything is read of it, if it must wait.
    pub(super) fn came(&self, now: Instant) -> Option<Duration> {
        self.take(CONNECTION, now)
    }

    /// It said something. How long to wait before more is read, if it must wait.
    pub(super) fn said(&self, now: Instant) -> Option<Duration> {
        self.take(1, now)
    }

    fn take(&self, cost: u32, now: Instant) -> Option<Duration> {
        let mut count = self.connections.lock();
        let own = count.processes.get_mut(&self.process).and_then(|account| account.pace.heard(cost, now));
        let all = count.cgroups.get_mut(&self.cgroup).and_then(|account| account.pace.heard(cost, now));
        own.max(all)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut count = self.connections.lock();
        count.all -= 1;
        less(&mut count.processes, &self.process);
        less(&mut count.cgroups, &self.cgroup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn process(pid: u32) -> Process {
        Process { pid, start: 1 }
    }

    fn known(connections: &Connections) -> (usize, usize, usize) {
        let count = connections.lock();
        (count.all, count.processes.len(), count.cgroups.len())
    }

    #[test]
    fn one_container_does_not_take_everybodys_connections() {
        let connections = Connections::default();
        let now = Instant::now();
        let held: Vec<Counted> =
            (0..).map_while(|pid| connections.count(process(pid), "/hog", now)).take(CONNECTIONS).collect();
        assert_eq!(held.len(), PER_CGROUP);
        let other = connections.count(process(1_000_000), "/other", now).unwrap();
        drop(held);
        assert!(connections.count(process(1), "/hog", now).is_some());
        drop(other);
        connections.forget(now);
        assert_eq!(known(&connections), (0, 0, 0), "who said nothing is forgotten at the next look");
    }

    #[test]
    fn one_process_has_a_handful_of_connections() {
        let connections = Connections::default();
        let now = Instant::now();
        let held: Vec<Counted> = (0..100).map_while(|_| connections.count(process(1), "/one", now)).collect();
        assert_eq!(held.len(), PER_PROCESS);
    }

    #[test]
    fn a_client_that_comes_back_once_a_second_with_all_it_holds_is_never_held_up() {
        let connections = Connections::default();
        let mut now = Instant::now();
        for _ in 0..1000 {
            let counted = connections.count(process(1), "/one", now).unwrap();
            assert_eq!(counted.came(now), None);
            for _ in 0..1000 {
                assert_eq!(counted.said(now), None);
            }
            now += SECOND;
        }
    }

    #[test]
    fn a_container_of_clients_that_all_come_back_at_once_is_not_held_up() {
        let connections = Connections::default();
        let now = Instant::now();
        for pid in 0..PER_CGROUP as u32 {
            let counted = connections.count(process(pid), "/many", now).unwrap();
            assert_eq!(counted.came(now), None, "client {pid}");
            for _ in 0..40 {
                assert_eq!(counted.said(now), None, "client {pid}");
            }
        }
    }

    /// How much is heard in ten seconds of one that never waits longer than it must.
    fn heard(next: impl Fn(u32) -> Process) -> u32 {
        let connections = Connections::default();
        let begun = Instant::now();
        let (mut now, mut messages, mut sessions) = (begun, 0, 0);
        while now < begun + 10 * SECOND {
            let counted = connections.count(next(sessions), "/one", now).unwrap();
            sessions += 1;
            now += counted.came(now).unwrap_or_default();
            for _ in 0..100 {
                messages += 1;
                now += counted.said(now).unwrap_or_default();
            }
        }
        messages
    }

    #[test]
    fn a_new_session_brings_nothing_new() {
        let most = 10.0 * 2000.0 + 4096.0;
        let messages = f64::from(heard(|_| process(1)));
        assert!(messages < most + 200.0 && messages > most * 0.8, "{messages} of {most}");
    }

    #[test]
    fn new_processes_of_a_container_bring_nothing_new() {
        let most = 10.0 * 16_000.0 + 65_536.0;
        let messages = f64::from(heard(process));
        assert!(messages < most + 200.0 && messages > most * 0.8, "{messages} of {most}");
    }

    #[test]
    fn who_is_gone_is_forgotten_when_its_bucket_would_be_full_again() {
        let connections = Connections::default();
        let now = Instant::now();
        let counted = connections.count(process(1), "/one", now).unwrap();
        for _ in 0..5000 {
            counted.said(now);
        }
        drop(counted);
        connections.forget(now);
        assert_eq!(known(&connections), (0, 1, 1), "it may come back");
        connections.forget(now + 10 * SECOND);
        assert_eq!(known(&connections), (0, 0, 0));
    }

    #[test]
    fn however_many_come_and_go_only_so_many_are_known() {
        let connections = Connections::default();
        let now = Instant::now() + 60 * SECOND;
        let stays = connections.count(process(u32::MAX), "/stays", now).unwrap();
        for pid in 0..3 * KNOWN as u32 {
            let counted = connections.count(process(pid), &format!("/{pid}"), now).unwrap();
            counted.came(now);
        }
        let (all, processes, cgroups) = known(&connections);
        assert!(all == 1 && processes <= KNOWN && cgroups <= KNOWN, "{processes} {cgroups}");
        drop(stays);
        assert_eq!(connections.lock().all, 0);
    }

    #[test]
    fn of_connections_without_an_end_that_are_turned_away_only_so_many_are_told() {
        let connections = Connections::default();
        let mut now = Instant::now();
        let told = (0..20_000).filter(|_| connections.turned_away(now)).count();
        assert_eq!(told, 4096);
        now += SECOND;
        let told = (0..20_000).filter(|_| connections.turned_away(now)).count();
        assert_eq!(told, 2000);
    }
}
