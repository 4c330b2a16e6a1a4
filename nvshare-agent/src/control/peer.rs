//! Who is at the other end of a connection: by the kernel's word, never by its own.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use super::page;
use crate::observation::Process;

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
        let credentials = rustix::net::sockopt::socket_peercred(&socket).map_err(std::io::Error::from)?;
        let pid = credentials.pid;
        let number = pid.as_raw_nonzero().get();
        if number <= 0 {
            return Err(PeerError::Invisible);
        }
        let gone = || PeerError::Gone(number);
        let process = Process::of(number.unsigned_abs()).ok_or_else(gone)?;
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
        if Process::of(number.unsigned_abs()) != Some(process) {
            return Err(gone());
        }
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{number}/{file}")).unwrap_or_default();
        let name = read("comm").trim_end().to_owned();
        let cgroup = read("cgroup")
            .lines()
            .last()
            .and_then(|line| line.splitn(3, ':').nth(2))
            .unwrap_or("")
            .to_owned();
        Ok(Peer { process, pidfd, name, cgroup })
    }
}
