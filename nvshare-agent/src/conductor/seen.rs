//! What is seen of clients, whatever they say: by the uprobes, and on their counter pages.

use nvshare_agent_core::ledger::{Client, Page};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{Activity, Counts, Observation, What};
use nvshare_agent_core::process::Process;
use nvshare_agent_core::snapshot::{Ended, Totals};
use nvshare_common::ids::ClientId;
use nvshare_common::probe::Call;

use super::rest::digest;
use super::{Conductor, bypass};
use crate::control::CounterPage;

/// A client's page, and what is known from looking at it.
pub(super) struct Paged {
    pub(super) page: CounterPage,
    /// Of all that it said at the last look: whether anything has changed since.
    pub(super) digest: u64,
    pub(super) bypass: bypass::Watch,
}

impl Conductor {
    pub(super) fn observed(&mut self, Observation { process, what }: &Observation, now: Moment) {
        let process = self.known(*process);
        let client = self.core.ledger.client_of(process);
        let observed = self.core.ledger.observe(process, what);
        if let What::Activity(Activity { who, .. }) = what
            && observed.is_some_and(|observed| observed.name().is_empty())
        {
            // A process may have no name; it is not met again for that.
            let name = if who.name.is_empty() { "?" } else { &who.name };
            self.core.ledger.observed_named(process, name);
            if client.is_none() {
                self.meet(process, &who.cgroup, now);
            }
        }
        match (what, client) {
            (What::Activity(activity), Some(client)) => self.seen(client, activity),
            (What::Activity(activity), None) => self.seen_of_the_dead(process, activity),
            (What::Exited, _) => self.gone(process),
            // The program that had the shim is gone, and what it held with it; the process lives on without.
            (What::Exec, Some(client))
                if self.core.ledger.client(client).is_some_and(|client| client.session().is_none()) =>
            {
                self.exited(process, now);
            }
            (What::Uvm(device, paged), Some(client)) => {
                let core = &mut self.core;
                core.ledger.paged(client, *device, *paged, &core.settings, now);
            }
            (what, Some(client)) => self.core.ledger.warm(client, what, now),
            _ => {}
        }
    }

    /// A process ended. A client's counts are kept until it is buried.
    fn gone(&mut self, process: Process) {
        if self.core.ledger.latest_of(process.pid).is_none_or(|client| client.process() != process) {
            self.forget(process);
        }
    }

    /// A process that was reaped before the observer looked has no start: it is the client with that pid.
    fn known(&self, process: Process) -> Process {
        if process.start != 0 {
            return process;
        }
        self.core.ledger.latest_of(process.pid).map_or(process, Client::process)
    }

    /// The uprobes counted a client's calls. They were read before the page is: see [`bypass`].
    fn seen(&mut self, id: ClientId, activity: &Activity) {
        let &Activity { ref counts, first_call, last_call, last_launch, .. } = activity;
        let Some(paged) = self.pages.get_mut(&id) else { return };
        self.core.ledger.active(id, last_launch);
        let Some(client) = self.core.ledger.client(id) else { return };
        // What was called before its Hello may have been called by the program before, which had another page.
        if client.bypass() || last_call < client.greeted() {
            return;
        }
        let (page, pid) = (view(&paged.page).calls, client.process().pid);
        let looked = paged.bypass.look(counts, &page, self.batches, first_call, || threads(pid));
        let Some(call) = looked else { return };
        self.core.ledger.bypassed(id);
        let call = Call::ALL[call].name();
        tracing::warn!(
            client = id.0,
            pid,
            call,
            "driver calls that its shim did not make: its memory is never moved"
        );
        self.memory.pressing = true;
        self.tell_bypass(id);
    }

    /// The last counts of a client often come after its end.
    fn seen_of_the_dead(&mut self, process: Process, activity: &Activity) {
        let same = |ended: &&mut Ended| {
            ended.process.pid == process.pid && (process.start == 0 || ended.process.start == process.start)
        };
        if let Some(ended) = self.ended.iter_mut().rev().find(same) {
            ended.totals.application_seen = Totals::named(&activity.counts.application);
            ended.totals.engine_seen = Totals::named(&activity.counts.engine);
            ended.totals.lost = activity.lost.iter().sum();
            self.forget(process);
        }
    }

    /// Looks at all counter pages.
    pub(super) fn look(&mut self, now: Moment) {
        self.looked = now;
        for (client, paged) in &mut self.pages {
            paged.digest = digest(&paged.page);
            self.core.sample(*client, &view(&paged.page), now);
        }
    }
}

/// How many threads a process has.
pub(super) fn threads(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    // One that has ended calls nothing any more.
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The page at this moment.
pub(super) fn view(page: &CounterPage) -> Page {
    // No count comes as far by itself; sums of what a client may write there must not overflow.
    let possible = |counts: [u64; Call::COUNT]| counts.map(|count| count.min(1 << 56));
    let (application, engine) = page.calls();
    Page {
        calls: Counts { application: possible(application), engine: possible(engine) },
        waiting: page.waiting.load(std::sync::atomic::Ordering::Relaxed),
        holdings: page.holdings().collect(),
    }
}
