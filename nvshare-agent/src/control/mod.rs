//! The clients' socket: who connects is found out by the kernel, one task carries each session, and nothing a client
//! sends, or does not read, reaches beyond its own session.

mod connections;
mod door;
mod home;
mod listener;
mod options;
mod outbox;
mod pace;
mod page;
mod peer;
mod session;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvshare_common::protocol::{Hello, ToAgent};

pub(crate) use connections::{CONNECTIONS, Counted};
pub(crate) use door::{is_removed, lookers};
pub(crate) use home::Home;
pub use listener::{BindError, Heard, Listener, Tell};
pub use options::Options;
pub use outbox::{Outbox, Undelivered};
pub use page::{CounterPage, PageError};
pub use peer::{Peer, PeerError};

/// What happens on a session, in order.
#[derive(Debug)]
pub enum Event {
    /// A client said `Hello`. It has to be answered through `outbox`.
    Opened(Box<Opened>),
    /// A client sent a message, maybe with a descriptor.
    Said(ToAgent, Option<OwnedFd>),
    /// The session is over.
    Closed(End),
    /// A connection was refused before it became a session.
    Refused(Refusal),
}

/// The beginning of a session.
#[derive(Debug)]
pub struct Opened {
    /// Who.
    pub peer: Peer,
    /// What it says of itself.
    pub hello: Hello,
    /// Its counters; or why there are none.
    pub page: Result<CounterPage, PageError>,
    /// The way to it.
    pub outbox: Outbox,
    /// It counts as connected until this is dropped: as long as it has an account.
    pub(crate) counted: Arc<Counted>,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The kernel does not tell whose it is.
    Unknown,
    /// There are too many of its process, its cgroup, or all.
    TooMany,
    /// It speaks a protocol of another release.
    Version,
    /// It said something that is no `Hello`.
    Malformed,
    /// It said nothing.
    Silent,
    /// The client closed it, or died.
    Left,
    /// It failed.
    Broken,
}

impl Refusal {
    /// All of them: each is a series from the start, so that the first one is an increase.
    pub const ALL: [Refusal; 7] = [
        Refusal::Unknown,
        Refusal::TooMany,
        Refusal::Version,
        Refusal::Malformed,
        Refusal::Silent,
        Refusal::Left,
        Refusal::Broken,
    ];

    /// A metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Refusal::Unknown => "unknown",
            Refusal::TooMany => "too_many",
            Refusal::Version => "version",
            Refusal::Malformed => "malformed",
            Refusal::Silent => "silent",
            Refusal::Left => "left",
            Refusal::Broken => "broken",
        }
    }

    /// That of a connection that ended in this way before it was a session.
    const fn of(end: &End) -> Refusal {
        match end {
            // Nobody dismisses what is no session yet.
            End::Left | End::Dismissed => Refusal::Left,
            End::Malformed(_) => Refusal::Malformed,
            End::Silent => Refusal::Silent,
            End::Broken(_) => Refusal::Broken,
        }
    }
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The client closed it, or died.
    #[error("the client closed the connection")]
    Left,
    /// It said something that is no message.
    #[error("closed: {0}")]
    Malformed(String),
    /// It connected and said nothing.
    #[error("closed: no hello within {} s", session::HELLO_LIMIT.as_secs())]
    Silent,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// It did not read what it was sent, or has a newer session, or the agent stops.
    #[error("the agent ended the session")]
    Dismissed,
}

impl End {
    /// All labels, and the conductor's own reason: each is a series from the start, so that none appears by an accident.
    pub const LABELS: [&str; 6] = ["left", "malformed", "silent", "broken", "dismissed", "deaf"];

    /// A metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            End::Left => "left",
            End::Malformed(_) => "malformed",
            End::Silent => "silent",
            End::Broken(_) => "broken",
            End::Dismissed => "dismissed",
        }
    }
}
