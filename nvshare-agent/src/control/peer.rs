//! Who is at the other end of a connection: by the kernel's word, never by its own.

use std::os::fd::{AsFd, OwnedFd};

use nvshare_agent_core::observation::Identity;
use nvshare_agent_core::process::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::page;
use crate::proc;

/// A process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Which.
    pub process: Process,
    /// Readable once it is dead.
    pub pidfd: OwnedFd,
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub cgroup: String,
}

/// Why it cannot be told who connected.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No credentials, or no pidfd.
    #[error("cannot find out who connected: {0}")]
    System(#[from] std::io::Error),
    /// The process lives in a pid namespace that the agent does not see into.
    #[error(
        "the process that connected cannot be seen from the agent's pid namespace: run the agent with hostPID"
    )]
    Invisible,
    /// It is gone already.
    #[error("the process {0} that connected has ended")]
    Gone(i32),
}

impl Peer {
    /// The peer of `socket`.
    pub(super) fn of(socket: impl AsFd) -> Result<Peer, PeerError> {
        let number = page::peer_pid(socket.as_fd())?;
        // Zero: its number here is none.
        let Some(pid) = Pid::from_raw(number).filter(|_| number > 0) else {
            return Err(PeerError::Invisible);
        };
        let gone = || PeerError::Gone(number);
        let process = proc::process(number.unsigned_abs()).ok_or_else(gone)?;
        // With a pidfd from the socket the number cannot have passed to another process meanwhile; an older kernel leaves
        // a pidfd by number, whose process must at least have begun when the one we looked at did.
        let pidfd = match page::peer_pidfd(socket.as_fd()) {
            Ok(pidfd) => pidfd,
            // Other reasons (too many open files) say nothing about the process.
            Err(_) => pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|errno| match errno {
                Errno::SRCH => gone(),
                errno => PeerError::System(errno.into()),
            })?,
        };
        // The number may have passed to another before we looked for the first time: then the one that connected is dead.
        if proc::process(number.unsigned_abs()) != Some(process) || ended(&pidfd) {
            return Err(gone());
        }
        let Identity { name, cgroup } = proc::identity(number.unsigned_abs());
        Ok(Peer { process, pidfd, name, cgroup })
    }
}

/// Whether the process is dead.
fn ended(pidfd: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(pidfd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once)).is_ok_and(|readable| readable > 0)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_process_that_ended_is_known_by_its_pidfd_whoever_has_its_number() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!ended(&pidfd));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended(&pidfd));
    }

    #[test]
    fn whoever_connects_is_named_by_the_kernel() {
        let pair =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let peer = Peer::of(&pair.0).unwrap();
        assert_eq!(peer.process.pid, std::process::id());
    }
}
