//! The sessions that stand: a client has one at most. Whose a session is, and which a client's, is one step, however many
//! there are: a wave of jobs must not cost its square.

use std::collections::BTreeMap;

use nvshare_agent_core::ledger::SessionId;
use nvshare_common::ids::ClientId;

use crate::control::Outbox;

/// All of them.
#[derive(Default)]
pub(super) struct Lines {
    sessions: BTreeMap<SessionId, Line>,
    of: BTreeMap<ClientId, SessionId>,
}

/// A session that stands.
pub(super) struct Line {
    pub client: ClientId,
    pub outbox: Outbox,
}

impl Lines {
    /// The client's session from now on.
    pub(super) fn open(&mut self, session: SessionId, line: Line) {
        self.dismiss(line.client);
        self.of.insert(line.client, session);
        self.sessions.insert(session, line);
    }

    /// The session, if it stands.
    pub(super) fn get(&self, session: SessionId) -> Option<&Line> {
        self.sessions.get(&session)
    }

    /// The session is over.
    pub(super) fn close(&mut self, session: SessionId) -> Option<Line> {
        let line = self.sessions.remove(&session)?;
        self.of.remove(&line.client);
        Some(line)
    }

    /// Whatever session the client has is ended.
    pub(super) fn dismiss(&mut self, client: ClientId) {
        if let Some(session) = self.of.get(&client).copied()
            && let Some(line) = self.close(session)
        {
            line.outbox.dismiss();
        }
    }
}
