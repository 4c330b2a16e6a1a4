//! The sessions of clients, as they come and go: what they say goes to the core, what it answers goes back.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent_core::conductor::Command;
use nvshare_agent_core::ledger::{Client, SessionId};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::snapshot::{ENDED, Ended, Totals};
use nvshare_common::ids::ClientId;
use nvshare_common::protocol::{Answer, ToAgent, ToShim};
use tokio::io::Interest;

use super::lines::Line;
use super::seen::{Paged, threads, view};
use super::{Conductor, Input, bypass, host};
use crate::clock;
use crate::control::{Counted, Opened};
use crate::proc;
use crate::ready::wait_for;

impl Conductor {
    pub(super) fn opened(&mut self, session: SessionId, opened: Opened, now: Moment) {
        let Opened { peer, hello, page, outbox, counted } = opened;
        self.awaited.remove(&peer.process.pid);
        let before = self.core.ledger.client_of(peer.process).map(|client| self.done(client));
        let new = before.is_none();
        let client = self.core.hello(peer.process, session, &hello, now);
        self.core.ledger.named(client, peer.name, peer.cgroup.clone());
        if new {
            self.recall(peer.process, now);
        }
        self.meet(peer.process, &peer.cgroup, now);
        tracing::info!(
            client = client.0,
            pid = peer.process.pid,
            shim = hello.release,
            devices = hello.devices.len(),
            arenas = hello.arenas,
            new,
            "client connected"
        );
        match page {
            Ok(page) => {
                let calls = view(&page).calls;
                let bypass = bypass::Watch::since(&calls, clock::now(), threads(peer.process.pid));
                self.pages.insert(client, Paged { page, digest: 0, bypass });
            }
            Err(why) => {
                self.pages.remove(&client);
                self.core.ledger.unpaged(client);
                tracing::warn!(client = client.0, pid = peer.process.pid, %why, "no counters");
            }
        }
        self.count_on(peer.process, client, before);
        self.lines.dismiss(client);
        self.host.left(client);
        self.sessions.opened += 1;
        let [limits, sizes] = self.core.first_limits(client);
        if outbox.answer(&Answer::Welcome { client, limits, sizes }).is_ok() {
            self.lines.open(session, Line { client, outbox });
            self.tell_bypass(client);
        } else {
            // It is over already, and that it was closed finds no line.
            self.disconnected(client, session, now);
        }
        if new {
            self.watch(peer.process, peer.pidfd, counted);
        }
        if let Some(paged) = self.pages.get(&client) {
            self.core.sample(client, &view(&paged.page), now);
        }
    }

    /// What the client did, by itself and by what was kept of it.
    fn done(&self, client: ClientId) -> Totals {
        self.core.ledger.client(client).map(|client| self.unobserved_totals(client)).unwrap_or_default()
    }

    /// Keeps the sums over all clients from going back, and from beginning with what others than this agent counted, where a
    /// session begins: `before` is what the client had done, if it is known.
    fn count_on(&mut self, process: Process, client: ClientId, before: Option<Totals>) {
        let now = self.done(client);
        match before {
            // With another program a process has another page: what was on the first has ended.
            Some(before) => self.ended_totals.add(&before.since(&now)),
            None if self.began_after(process) => self.earlier.add(&now),
            None => {}
        }
    }

    /// Whether the process is older than this one.
    fn began_after(&self, process: Process) -> bool {
        self.this.is_some_and(|this| process.start < this.start)
    }

    /// A shim that is to move nothing any more knows that, and says so to the next agent.
    pub(super) fn tell_bypass(&mut self, client: ClientId) {
        let known = self.core.ledger.client(client).filter(|client| client.bypass());
        if let Some(session) = known.and_then(Client::session) {
            self.send(Command { client, session, message: ToShim::Bypassed }, None);
        }
    }

    /// Tells the conductor when the process ends; so long it counts as connected.
    fn watch(&self, process: Process, pidfd: OwnedFd, counted: Arc<Counted>) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            match wait_for(pidfd, Interest::READABLE) {
                Ok(pidfd) => drop(pidfd.readable().await),
                // Without it the process is looked for now and then.
                Err(error) => {
                    tracing::warn!(pid = process.pid, %error, "cannot watch a process");
                    while proc::process(process.pid) == Some(process) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
            if let Some(inputs) = inputs.upgrade() {
                let _ = inputs.send(Input::Exited(process)).await;
            }
            drop(counted);
        });
    }

    pub(super) fn said(
        &mut self,
        session: SessionId,
        message: ToAgent,
        descriptor: Option<OwnedFd>,
        now: Moment,
    ) {
        let Some(client) = self.lines.get(session).map(|line| line.client) else { return };
        let measure = || host::measure(descriptor.ok_or("no descriptor")?);
        let heard = self.core.hear_with(client, session, message, measure, now);
        if let Some((arena, fate)) = heard.arena {
            self.host.follow(client, arena, fate);
        }
        if heard.read {
            // Until there is an answer it is asked for again: see `turn`.
            self.ask(now);
        }
        for command in heard.commands {
            self.send(command, None);
        }
    }

    /// A client's session is over.
    pub(super) fn disconnected(&mut self, client: ClientId, session: SessionId, now: Moment) {
        self.core.disconnected(client, session, now);
        self.host.left(client);
    }

    pub(super) fn exited(&mut self, process: Process, now: Moment) {
        self.awaited.remove(&process.pid);
        let Some(client) = self.core.ledger.client_of(process) else { return };
        tracing::info!(client = client.0, pid = process.pid, "client ended");
        // The page outlives its process; this is its last word.
        if let Some(paged) = self.pages.get(&client) {
            self.core.sample(client, &view(&paged.page), now);
        }
        self.core.exited(client, now);
        self.host.left(client);
        self.lines.dismiss(client);
        self.ask(now);
    }

    pub(super) fn send(&mut self, command: Command, descriptor: Option<Arc<OwnedFd>>) {
        let Some(line) = self.lines.get(command.session) else { return };
        tracing::debug!(client = command.client.0, message = ?command.message, "command");
        if line.outbox.send(&command.message, descriptor).is_err() {
            tracing::warn!(client = command.client.0, "it does not read what it is sent: session closed");
            line.outbox.dismiss();
            self.lines.close(command.session);
            *self.sessions.closed.entry("deaf".to_owned()).or_default() += 1;
            self.disconnected(command.client, command.session, clock::now());
        }
    }

    pub(super) fn ended(&mut self, client: &Client) {
        let totals = self.totals(client);
        self.pages.remove(&client.id());
        self.ended_count += 1;
        if self.ended.len() == ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.ended_totals.add(&oldest.totals);
        }
        self.ended.push_back(Ended {
            client: client.id(),
            process: client.process(),
            name: client.name().to_owned(),
            totals,
        });
        self.forget(client.process());
    }
}
