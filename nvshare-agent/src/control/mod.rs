//! The clients' socket: who connects is found out by the kernel, one task carries each session, and nothing a client
//! sends, or does not read, reaches beyond its own session.

mod connections;
mod door;
mod pace;
mod page;
mod peer;
mod session;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nvshare_common::frame::{self, FrameError};
use nvshare_common::protocol::{Answer, Hello, ToAgent, ToShim};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) use connections::{CONNECTIONS, Counted};
pub(crate) use door::{is_removed, lookers};
use nvshare_agent_core::ledger::SessionId;
pub(crate) use page::wait_for;
pub use page::{CounterPage, PageError};
pub use peer::{Peer, PeerError};

use self::connections::Connections;
use self::door::Doors;
use crate::conductor::Input;
use crate::no_space;

/// How often it is looked whether the socket is still where it was made, and knocked at back doors.
const LOOK_AT_PATH: std::time::Duration = std::time::Duration::from_secs(1);
/// Every how many of these looks all processes are looked at.
const LOOK_AT_ALL: u32 = 60;
/// How many packets may wait for a client to read them. One that does not read loses its session.
const QUEUE: usize = 512;
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
    Refused(&'static str),
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

/// A packet on its way to a client.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    descriptor: Option<Arc<OwnedFd>>,
}

/// The way to a client. Never blocks.
#[derive(Clone, Debug)]
pub struct Outbox {
    packets: mpsc::Sender<Packet>,
    dismissed: Arc<Notify>,
}

/// A message that could not be queued, because the client does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's queue is full")]
pub struct Undelivered;

impl Outbox {
    /// Answers `Hello`.
    pub fn answer(&self, answer: &Answer) -> Result<(), Undelivered> {
        self.queue(frame::encode_answer(answer), None)
    }

    /// Sends a message.
    pub fn send(&self, message: &ToShim, descriptor: Option<Arc<OwnedFd>>) -> Result<(), Undelivered> {
        self.queue(frame::encode(message), descriptor)
    }

    /// Ends the session, whatever still waits to be sent.
    pub fn dismiss(&self) {
        self.dismissed.notify_one();
    }

    fn queue(
        &self,
        packet: Result<Vec<u8>, FrameError>,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<(), Undelivered> {
        match packet {
            Ok(bytes) => match self.packets.try_send(Packet { bytes, descriptor }) {
                Err(TrySendError::Full(_)) => Err(Undelivered),
                // The session has ended, which is no fault of the client's; what it says of it is on its way.
                Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
            },
            Err(error) => {
                // The lists we send are bounded: this is a mistake of ours, not the client's.
                tracing::error!(%error, "a message cannot be sent");
                Err(Undelivered)
            }
        }
    }
}

/// The usual remedy.
const ROOT: &str = "run as root, or choose another path with --socket";

/// Why there is no socket for clients.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No directory.
    #[error("cannot create {}, the directory of the clients' socket: {}", path.display(), no_space::cause(source, path, ROOT))]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another agent.
    #[error("another agent listens on {}: stop it first, or choose another path with --socket", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// No socket.
    #[error("cannot listen on {} for clients: {}", path.display(), no_space::cause(source, path, ROOT))]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The listening socket. Its file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
    /// The file's inode: a successor's socket at the same path is not removed.
    inode: u64,
}

impl Listener {
    /// Creates the directory (0755) and the socket (0666: who connects is known by its credentials) at `path`. A socket
    /// that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<Listener, BindError> {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|source| BindError::Directory { path: directory.into(), source })?;
        let failed = |source: std::io::Error| BindError::Socket { path: path.into(), source };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let new = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let address = SocketAddrUnix::new(path).map_err(|errno| failed(errno.into()))?;
        let old = new().map_err(|errno| failed(errno.into()))?;
        match rustix::net::connect(&old, &address) {
            Ok(()) | Err(Errno::AGAIN) => return Err(BindError::InUse { path: path.into() }),
            Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        let socket = new().map_err(|errno| failed(errno.into()))?;
        bind(&socket, &address).map_err(|errno| failed(errno.into()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
        listen(&socket, 1024).map_err(|errno| failed(errno.into()))?;
        let inode = std::fs::metadata(path).map_err(failed)?.ino();
        Ok(Listener {
            socket: wait_for(socket, Interest::READABLE).map_err(failed)?,
            path: path.into(),
            inode,
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file at its path is this socket: its directory may have been removed, or replaced.
    fn stands(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }

    /// Accepts clients until the conductor is gone. What happens on their sessions goes to `inputs`. Where the directory is
    /// replaced, it listens in the new one too, and goes on in the old one for those who have that mounted. Says why it ended,
    /// if the conductor is not gone.
    pub async fn serve(self, inputs: mpsc::Sender<Input>) -> Option<String> {
        let entrance = Arc::new(Entrance {
            inputs,
            connections: Connections::default(),
            sessions: AtomicU64::new(0),
            begun: AtomicUsize::new(0),
        });
        let path = self.path.clone();
        let mut newest = Arc::new(self);
        // Dropped with this, they end.
        let mut accepting = JoinSet::new();
        let mut accepts = accepting.spawn(accept(Arc::clone(&newest), Arc::clone(&entrance)));
        let mut doors = Doors::default();
        let (mut looks, mut said) = (0_u32, false);
        loop {
            // All processes are looked at when it begins, when the directory was replaced, and rarely besides.
            let replaced = !newest.stands();
            if looks.is_multiple_of(LOOK_AT_ALL) || replaced {
                doors = look(doors).await;
            }
            looks = looks.wrapping_add(1);
            entrance.connections.forget(Instant::now());
            for socket in doors.knock() {
                entrance.admit(socket);
            }
            if replaced {
                match Listener::bind(&path) {
                    Ok(listener) => {
                        said = false;
                        tracing::warn!(
                            path = %path.display(),
                            "the clients' socket or its directory was removed: listening there anew; containers that \
                             have mounted the old directory are reached through it, or through their back doors"
                        );
                        newest = Arc::new(listener);
                        accepts = accepting.spawn(accept(Arc::clone(&newest), Arc::clone(&entrance)));
                    }
                    Err(error) if !std::mem::replace(&mut said, true) => {
                        tracing::warn!(%error, "the clients' socket was removed, and new clients run without an agent");
                    }
                    Err(_) => {}
                }
            }
            if entrance.inputs.is_closed() {
                return None;
            }
            tokio::select! {
                // In an old directory nobody may be left; where clients come now somebody has to be.
                Some(ended) = accepting.join_next_with_id(), if accepts.is_finished() => {
                    let (id, why) = match ended {
                        Ok((id, why)) => (id, why),
                        Err(error) => (error.id(), error.to_string()),
                    };
                    if id == accepts.id() && !entrance.inputs.is_closed() {
                        return Some(format!("no client can be accepted: {why}"));
                    }
                }
                () = tokio::time::sleep(LOOK_AT_PATH) => {}
            }
        }
    }
}

/// Looking at all processes takes a while: on a thread of its own.
async fn look(mut doors: Doors) -> Doors {
    let looked = tokio::task::spawn_blocking(move || {
        doors.look();
        doors
    });
    looked.await.unwrap_or_default()
}

/// Where clients come in.
struct Entrance {
    inputs: mpsc::Sender<Input>,
    connections: Connections,
    sessions: AtomicU64,
    /// Sessions that were begun and have not ended: counted before anything is done for them.
    begun: AtomicUsize,
}

impl Entrance {
    /// Carries what happens on the socket; closes it where there are too many.
    fn admit(self: &Arc<Entrance>, socket: OwnedFd) {
        let begun = Begun(Arc::clone(self));
        if self.begun.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            tracing::debug!("connection closed: there are {CONNECTIONS}");
            return;
        }
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed) + 1);
        tokio::spawn(async move {
            let entrance = &begun.0;
            session::carry(socket, id, entrance.inputs.clone(), entrance.connections.clone()).await;
        });
    }
}

/// Counts as begun until it is dropped, however the session ends.
struct Begun(Arc<Entrance>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Says why it ended.
async fn accept(listener: Arc<Listener>, entrance: Arc<Entrance>) -> String {
    loop {
        let accepted = {
            let mut ready = match listener.socket.readable().await {
                Ok(ready) => ready,
                Err(error) => return format!("the socket cannot be waited for: {error}"),
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            ready.try_io(|socket| Ok(accept_with(socket, flags)?))
        };
        match accepted {
            Err(_) => {}
            Ok(Ok(_)) if entrance.inputs.is_closed() => return "the conductor is gone".to_owned(),
            Ok(Ok(socket)) => entrance.admit(socket),
            Ok(Err(error)) => {
                // Out of descriptors, or a connection that broke before it was accepted: others may fare better.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.stands() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing of a session runs here before the first `await`: what counts only then counts too late.
    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_counts_before_anything_is_done_for_it() {
        let (inputs, _heard) = mpsc::channel(8);
        let entrance = Arc::new(Entrance {
            inputs,
            connections: Connections::default(),
            sessions: AtomicU64::new(0),
            begun: AtomicUsize::new(CONNECTIONS - 1),
        });
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair =
            || rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let read = |socket: &OwnedFd| rustix::io::read(socket, &mut [0; 8]);
        let (last, one_more) = (pair(), pair());
        entrance.admit(last.0);
        entrance.admit(one_more.0);
        assert_eq!(read(&one_more.1), Ok(0), "closed");
        assert_eq!(read(&last.1), Err(Errno::AGAIN), "open");
        assert_eq!(entrance.begun.load(Ordering::Acquire), CONNECTIONS);
        drop(last.1);
        while entrance.begun.load(Ordering::Acquire) >= CONNECTIONS {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_told_apart_from_one_that_has_ended() {
        let (packets, outgoing) = mpsc::channel(1);
        let outbox = Outbox { packets, dismissed: Arc::default() };
        let answer = Answer::Refused { why: "no".to_owned() };
        assert_eq!(outbox.answer(&answer), Ok(()));
        assert_eq!(outbox.answer(&answer), Err(Undelivered));
        drop(outgoing);
        assert_eq!(outbox.answer(&answer), Ok(()));
    }

    #[tokio::test]
    async fn a_socket_whose_conductor_is_gone_ends_without_a_complaint() {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&directory.path().join("agent.sock")).unwrap();
        let (inputs, heard) = mpsc::channel(8);
        let served = tokio::spawn(listener.serve(inputs));
        drop(heard);
        assert_eq!(served.await.unwrap(), None, "the conductor is gone: no news");
    }
}
