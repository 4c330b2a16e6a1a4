//! The clients' socket itself: where it is, who is let in, and how many at a time.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nvshare_agent_core::ledger::SessionId;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connections::{CONNECTIONS, Connections};
use super::door::Doors;
use super::home::Home;
use super::{Event, session};
use crate::no_space;
use crate::ready::wait_for;

/// How often it is looked whether the socket is still where it was made, and knocked at back doors.
const LOOK_AT_PATH: std::time::Duration = std::time::Duration::from_secs(1);
/// Every how many of these looks all processes are looked at.
const LOOK_AT_ALL: u32 = 60;

/// Tells what happened on a session.
pub trait Tell<H>: Fn(SessionId, Event) -> H + Send + Sync + 'static {}
impl<H, T: Fn(SessionId, Event) -> H + Send + Sync + 'static> Tell<H> for T {}

/// Whether somebody heard it, once there was room for it.
pub trait Heard: Future<Output = bool> + Send + 'static {}
impl<H: Future<Output = bool> + Send + 'static> Heard for H {}

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

    /// Accepts clients until whoever is told is `gone`. What happens on their sessions is told, in order; the answer says
    /// whether somebody heard it. Where the directory is replaced, it listens in the new one too, and goes on in the old one
    /// for those who have that mounted. Says why it ended, if nobody is gone.
    pub async fn serve<H: Heard>(self, tell: impl Tell<H>, gone: impl Future<Output = ()>) -> Option<String> {
        tokio::select! {
            biased;
            () = gone => None,
            why = self.accept_all(tell) => Some(why),
        }
    }

    /// Says why nobody can come any more.
    async fn accept_all<H: Heard>(self, tell: impl Tell<H>) -> String {
        let entrance = Arc::new(Entrance {
            tell,
            connections: Connections::default(),
            sessions: AtomicU64::new(0),
            begun: AtomicUsize::new(0),
        });
        let path = self.path.clone();
        let mut newest = Arc::new(self);
        // Dropped with this, they end.
        let mut accepting = JoinSet::new();
        let mut accepts = accepting.spawn(accept(Arc::clone(&newest), Arc::clone(&entrance)));
        let (mut doors, home) = (Doors::default(), Home::of(&path));
        let (mut looks, mut said) = (0_u32, false);
        loop {
            // All processes are looked at when it begins, when the directory was replaced, and rarely besides.
            let replaced = !newest.stands();
            if looks.is_multiple_of(LOOK_AT_ALL) || replaced {
                doors = look(doors, home.clone()).await;
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
            tokio::select! {
                // In an old directory nobody may be left; where clients come now somebody has to be.
                Some(ended) = accepting.join_next_with_id(), if accepts.is_finished() => {
                    let (id, why) = match ended {
                        Ok((id, why)) => (id, why),
                        Err(error) => (error.id(), error.to_string()),
                    };
                    if id == accepts.id() {
                        return format!("no client can be accepted: {why}");
                    }
                }
                () = tokio::time::sleep(LOOK_AT_PATH) => {}
            }
        }
    }
}

/// Looking at all processes takes a while: on a thread of its own.
async fn look(mut doors: Doors, home: Home) -> Doors {
    let looked = tokio::task::spawn_blocking(move || {
        doors.look(&home);
        doors
    });
    looked.await.unwrap_or_default()
}

/// Where clients come in.
struct Entrance<T> {
    tell: T,
    connections: Connections,
    sessions: AtomicU64,
    /// Sessions that were begun and have not ended: counted before anything is done for them.
    begun: AtomicUsize,
}

impl<T> Entrance<T> {
    /// Carries what happens on the socket; closes it where there are too many.
    fn admit<H: Heard>(self: &Arc<Entrance<T>>, socket: OwnedFd)
    where
        T: Tell<H>,
    {
        let begun = Begun(Arc::clone(self));
        if self.begun.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            tracing::debug!("connection closed: there are {CONNECTIONS}");
            return;
        }
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed) + 1);
        tokio::spawn(async move {
            let entrance = &begun.0;
            let tell = |event| (entrance.tell)(id, event);
            session::carry(socket, id, tell, entrance.connections.clone()).await;
        });
    }
}

/// Counts as begun until it is dropped, however the session ends.
struct Begun<T>(Arc<Entrance<T>>);

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        self.0.begun.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Says why it ended.
async fn accept<H: Heard>(listener: Arc<Listener>, entrance: Arc<Entrance<impl Tell<H>>>) -> String {
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
        let entrance = Arc::new(Entrance {
            tell: |_, _| std::future::ready(true),
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

    #[tokio::test]
    async fn a_socket_whose_conductor_is_gone_ends_without_a_complaint() {
        let directory = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&directory.path().join("agent.sock")).unwrap();
        let (inputs, heard) = tokio::sync::mpsc::channel::<()>(8);
        let tell = |_, _| std::future::ready(false);
        let served = tokio::spawn(listener.serve(tell, async move { inputs.closed().await }));
        drop(heard);
        assert_eq!(served.await.unwrap(), None, "the conductor is gone: no news");
    }
}
