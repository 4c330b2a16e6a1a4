//! What outlives the agent (A7): gathered from the ledger for [`crate::keep`], and given back to clients that come again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use nvshare_agent_core::ledger::{Client, Orders, Past};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::process::Process;

use super::Conductor;
use crate::keep::{FILE, Keeper, Kept, MOST, Remembered};
use crate::proc;

/// How often it is written when only run times have changed.
const RARELY: Duration = Duration::from_secs(10);
/// How often when somebody ordered something, or a bypass was found.
const SOON: Duration = Duration::from_millis(200);

/// What is known from before, and what was written last.
#[derive(Debug, Default)]
pub(super) struct Memory {
    keeper: Option<Keeper>,
    /// Of processes that have not come yet.
    before: HashMap<Process, Remembered>,
    written: Kept,
    at: Moment,
    /// Something changed that must not be lost.
    pub(super) pressing: bool,
}

impl Conductor {
    /// Keeps what was learned in `directory`, and begins with what an earlier agent kept there.
    #[must_use]
    pub fn keeping(mut self, directory: Option<PathBuf>) -> Conductor {
        let Some(path) = directory.map(|directory| directory.join(FILE)) else { return self };
        match Kept::read(&path) {
            Ok(kept) => {
                if !kept.clients.is_empty() {
                    tracing::info!(clients = kept.clients.len(), "remembered what an earlier agent learned");
                }
                let cost = Duration::try_from_secs_f64(kept.switch_cost).unwrap_or_default();
                self.core.ledger.switches_cost(cost.min(self.core.settings.lease_ceiling));
                self.memory.before =
                    kept.clients.into_iter().map(|client| (client.process, client)).collect();
            }
            Err(why) => tracing::warn!(
                path = %path.display(), %why,
                "what an earlier agent learned of clients is not used: orders for them have to be given again"
            ),
        }
        match Keeper::start(path) {
            Ok(keeper) => self.memory.keeper = Some(keeper),
            Err(error) => tracing::warn!(%error, "what is learned of clients is not kept for the next agent"),
        }
        self
    }

    /// A client that is new to this agent gets back what an earlier one knew of it.
    pub(super) fn recall(&mut self, process: Process, now: Moment) {
        let Some(known) = self.memory.before.remove(&process) else { return };
        let Some(client) = self.core.ledger.client_of(process) else { return };
        self.core.ledger.recall(client, &past(&known, now));
        self.owners.recall(process, known.annotations);
    }

    /// Writes what has changed, when it is time.
    pub(super) fn keep(&mut self, now: Moment) {
        if self.memory.keeper.is_none() {
            self.memory.pressing = false;
            return;
        }
        let pause = if self.memory.pressing { SOON } else { RARELY };
        if now.since(self.memory.at) < pause {
            return;
        }
        self.memory.at = now;
        let kept = self.knowledge();
        if kept == self.memory.written {
            self.memory.pressing = false;
            return;
        }
        if let Some(keeper) = &self.memory.keeper
            && keeper.keep(kept.clone())
        {
            self.memory.written = kept;
            self.memory.pressing = false;
        }
    }

    /// Writes what has changed a last time: what was answered to be ordered is to be known to the next agent. Returns when
    /// the disk has it.
    pub(super) async fn keep_last(&mut self) {
        let Some(keeper) = self.memory.keeper.take() else { return };
        let kept = self.knowledge();
        let last = (kept != self.memory.written).then_some(kept);
        // A disk may take its time: not on a thread that others need. It fails only where the keeper panicked.
        let _ = tokio::task::spawn_blocking(move || keeper.finish(last)).await;
    }

    /// All that the next agent is to know.
    fn knowledge(&mut self) -> Kept {
        let living = self.core.ledger.clients().values().filter(|client| client.exited().is_none());
        let mut clients: Vec<Remembered> = living.map(|client| self.remembered(client)).collect();
        // Those that have not come yet may still come; once granting has begun, only if they live.
        self.memory.before.retain(|process, _| proc::process(process.pid) == Some(*process));
        clients.extend(self.memory.before.values().cloned());
        clients.truncate(MOST);
        Kept::new(self.core.ledger.switch_cost(), clients)
    }

    fn remembered(&self, client: &Client) -> Remembered {
        Remembered {
            process: client.process(),
            bypass: client.bypass(),
            priority: client.orders().priority,
            weight: client.orders().weight,
            pinned: client.orders().pinned,
            held_out: client.held_out(),
            limit: client.orders().limit,
            annotations: self.owners.ordered(client.process()),
            runtime: client.runtime().as_secs_f64(),
            stalls: client.stalls(),
            totals: [client.stops_total(), client.stalls_total(), client.swap_failures_total()],
        }
    }
}

/// What the ledger takes over of it: whoever was held out is so from now on.
fn past(known: &Remembered, now: Moment) -> Past {
    Past {
        bypass: known.bypass,
        orders: Orders {
            priority: known.priority,
            weight: known.weight,
            pinned: known.pinned,
            held_out: known.held_out.then_some(now),
            limit: known.limit,
        },
        runtime: Duration::try_from_secs_f64(known.runtime).ok(),
        stalls: known.stalls,
        totals: known.totals,
    }
}
