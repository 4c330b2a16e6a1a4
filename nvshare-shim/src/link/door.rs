//! The back door, for when the agent's directory was removed under this process: what a container has mounted is then a
//! directory that nobody can put a socket into any more, and the agent listens in another of the same name. So this
//! process makes a pair of sockets, writes the number of one end to its counter page, and the agent, which sees every
//! process, takes it (`pidfd_getfd`) and knocks. From then on it is a session like any other.
//!
//! Each pair is another door: a session that came to nothing is followed by a new one, which the agent knows by its cookie.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nvshare_common::protocol::KNOCK;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_cookie;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use crate::descriptors::Own;
use crate::{config, counters, line, log};

/// A pair of which nobody has taken the other end yet.
#[derive(Debug)]
pub(super) struct Door {
    inside: Own,
    outside: Own,
}

/// Whether the directory of the agent's socket is there and has no name any more; or is not there, for who had an agent
/// once: the program has another root now, or other mounts.
pub(super) fn is_needed() -> bool {
    let directory = config::get().socket.parent().unwrap_or(Path::new("/"));
    std::fs::metadata(directory).map_or_else(|_| line::was_managed(), |directory| directory.nlink() == 0)
}

impl Door {
    /// Makes one and says where it is.
    pub(super) fn open() -> rustix::io::Result<Door> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (inside, outside) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let (inside, outside) = (Own::new(inside)?, Own::new(outside)?);
        let offered = outside.get()?;
        counters::page().door_cookie.store(socket_cookie(offered)?, Ordering::Release);
        counters::page().door.store(offered.as_raw_fd() as u64 + 1, Ordering::Release);
        log::warning!(
            "the directory of {} is gone for this process; the agent reaches it all the same if it may",
            config::get().socket.display()
        );
        Ok(Door { inside, outside })
    }

    /// Waits for the agent's knock. On success the session's socket; this process keeps no other end of it, so that it sees
    /// the agent's end.
    pub(super) fn wait(self, limit: Duration) -> Result<Own, Door> {
        if !self.is_knocked_at(limit) {
            return Err(self);
        }
        counters::page().door.store(0, Ordering::Release);
        let Door { inside, outside } = self;
        drop(outside);
        Ok(inside)
    }

    fn is_knocked_at(&self, limit: Duration) -> bool {
        let (Ok(limit), Ok(inside)) = (Timespec::try_from(limit), self.inside.get()) else { return false };
        let mut asked = [PollFd::from_borrowed_fd(inside, PollFlags::IN)];
        let knocked = poll(&mut asked, Some(&limit)).is_ok_and(|ready| ready > 0);
        let mut knock = [0; KNOCK.len()];
        let mut read = || self.inside.get().and_then(|inside| recv(inside, &mut knock, RecvFlags::DONTWAIT));
        knocked && read().is_ok()
    }
}
