//! Memory that processes share by CUDA IPC: its [`owner`] and who opens it ([`opener`]) talk over an abstract socket of the owner's.
//! Both are processes of one user; no agent is needed.

mod opener;
mod owner;
mod peer;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nvshare_common::share::{TICKET_BYTES, Ticket};
use nvshare_common::wire::{self, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub(crate) use self::opener::open;
pub(crate) use self::owner::place;
use crate::allocation::shared;
use crate::descriptors::Own;

/// How long the other side may take to say the next thing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ticket for the allocation around `at`; `None`: it is not ours, or cannot be shared. Inside a pass of the gate.
pub(crate) fn ticket(at: u64) -> Option<[u8; TICKET_BYTES]> {
    let place = place()?;
    let (number, secret) = shared::share(at, peer::random()?)?;
    Some(Ticket { place, number, secret }.write())
}

fn send(socket: &Own, packet: &[u8], descriptor: Option<&OwnedFd>) -> rustix::io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match wire::send(socket.get()?, packet, descriptor.map(AsFd::as_fd)) {
            // Full, or too many descriptors on their way that nobody has taken.
            Err(Errno::AGAIN | Errno::TOOMANYREFS) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Errno::INTR) => {}
            sent => return sent,
        }
    }
}

/// The next packet; `None`: the other side is gone, or says what makes no sense.
fn heard(
    socket: &Own,
    buffer: &mut [u8],
    deadline: Instant,
) -> rustix::io::Result<Option<(usize, Option<OwnedFd>)>> {
    loop {
        match wire::receive(socket.get()?, buffer) {
            Ok(Received::Packet(length, descriptor)) => return Ok(Some((length, descriptor))),
            Ok(Received::TooLong | Received::End) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if ready(socket.get()?, deadline)? => {}
            Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until there is something to be read, or until the deadline: then `false`.
fn ready(socket: impl AsFd, deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], limit.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready.map(|count| count > 0),
        }
    }
}
