//! Who opens shared memory of another process: shows its ticket, gets the descriptors, keeps the socket while it has them mapped,
//! and says when it has not.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nvshare_common::frame;
use nvshare_common::share::{Answer, RETURNED, Ticket};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{PATIENCE, heard, owner, send};
use crate::allocation::opened::{self, Lender};
use crate::cuda::CUresult;
use crate::descriptors::Own;
use crate::log;

/// An owner that said that it is coming may have to wait for its turn, or for others' memory to leave the card: it is waited for as
/// long as it lives.
const COMING: Duration = Duration::from_secs(1 << 30);

/// Opens what a ticket names, in the current context: its address here.
pub(crate) fn open(ticket: Ticket) -> Result<u64, CUresult> {
    if owner::is_here(ticket.place) {
        // As the driver answers who opens its own.
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    opened::open(ticket, || {
        let (socket, answer) = ask(&ticket).map_err(refused)?;
        Ok((answer, Box::new(Owner(socket))))
    })
}

fn refused(why: String) -> CUresult {
    log::warning!("shared memory of another process cannot be opened: {why}");
    CUresult::CUDA_ERROR_INVALID_VALUE
}

/// The way to who lends it.
struct Owner(Own);

impl Lender for Owner {
    fn next(&mut self) -> Result<OwnedFd, CUresult> {
        let mut buffer = [0; 16];
        match heard(&self.0, &mut buffer, Instant::now() + PATIENCE) {
            Ok(Some((_, Some(descriptor)))) => Ok(descriptor),
            Ok(_) => Err(refused("its owner has freed it just now".into())),
            Err(error) => Err(refused(format!("its owner does not give it: {error}"))),
        }
    }

    fn returned(&mut self) {
        // Where nobody listens there is nothing that would move.
        let _ = send(&self.0, RETURNED, None);
    }
}

fn ask(ticket: &Ticket) -> Result<(Own, Answer), String> {
    let reached = || {
        let flags = SocketFlags::CLOEXEC;
        let socket = Own::new(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)?;
        connect(socket.get()?, &SocketAddrUnix::new_abstract_name(ticket.name().as_bytes())?)?;
        send(&socket, &ticket.write(), None)?;
        Ok(socket)
    };
    let socket = reached().map_err(|error: Errno| match error {
        Errno::CONNREFUSED => "its owner has ended, or is in another network namespace".to_owned(),
        error => format!("its owner cannot be reached: {error}"),
    })?;
    let answer = match answer(&socket, PATIENCE)? {
        Answer::Coming => answer(&socket, COMING)?,
        other => other,
    };
    match answer {
        Answer::Gone => Err("its owner has freed it, or gave out another ticket".into()),
        given @ Answer::Given { .. } if given.is_sound() => Ok((socket, given)),
        _ => Err("its owner's answer makes no sense".into()),
    }
}

fn answer(socket: &Own, patience: Duration) -> Result<Answer, String> {
    let mut buffer = vec![0; frame::MAX_BYTES];
    let length = match heard(socket, &mut buffer, Instant::now() + patience) {
        Ok(Some((length, _))) => length,
        Ok(None) => return Err("its owner refuses: it is another user's, or has ended".into()),
        Err(error) => return Err(format!("its owner does not answer: {error}")),
    };
    frame::decode(&buffer[..length]).map_err(|error| error.to_string())
}
