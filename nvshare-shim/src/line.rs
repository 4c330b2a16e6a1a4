//! The line to the agent: what any thread may say, and ask. Sending never blocks: what the socket does not take waits in an
//! outbox that the control thread empties. Who begins a session, and hears what the agent says, is in `link`.
//!
//! The lock is taken before all others but those of whole procedures: what is booked and what is said are one step.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{DeviceId, Ticket};
use nvshare_common::protocol::{Purpose, ToAgent};
use nvshare_common::{frame, wire};
use rustix::io::Errno;

use crate::descriptors::Own;

mod asks;

pub(crate) use self::asks::{answer, answered};

/// More than this waiting to be sent means that the agent does not read. What an application does, however often, never comes
/// to that: of messages that replace one another ([`Kind`]) only the last one waits.
const OUTBOX_LIMIT: usize = 100_000;

/// What other threads send through.
#[derive(Debug)]
struct Line {
    socket: Arc<Own>,
    bell: Arc<Own>,
    outbox: VecDeque<(Kind, Vec<u8>)>,
}

impl Line {
    /// The control thread looks what is to be sent.
    fn ring(&self) -> rustix::io::Result<()> {
        match rustix::io::write(self.bell.get()?, &[1]) {
            // Full: it was rung before.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What a message replaces that was not sent yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Want(DeviceId, Purpose),
    Unswappable(DeviceId, String),
    /// An event, or an answer: each counts.
    Other,
}

impl Kind {
    fn of(message: &ToAgent) -> Kind {
        match message {
            ToAgent::Want { device, purpose, .. } => Kind::Want(*device, *purpose),
            ToAgent::Unswappable { device, reason, .. } => Kind::Unswappable(*device, reason.clone()),
            _ => Kind::Other,
        }
    }
}

/// Puts a packet at the end of those that wait, in the place of what it replaces.
fn queue(outbox: &mut VecDeque<(Kind, Vec<u8>)>, kind: Kind, packet: Vec<u8>) {
    if kind != Kind::Other {
        outbox.retain(|(other, _)| *other != kind);
    }
    outbox.push_back((kind, packet));
}

#[derive(Debug)]
struct Shared {
    line: Option<Line>,
    /// Whether grants count: there is an agent, or there was one until just now.
    managed: bool,
    ever_managed: bool,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { line: None, managed: false, ever_managed: false });

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether there is a session.
pub(crate) fn is_open() -> bool {
    shared().line.is_some()
}

/// Whether grants count.
pub(crate) fn is_managed() -> bool {
    shared().managed
}

/// Nothing that an agent granted counts any more.
pub(crate) fn unmanage() {
    shared().managed = false;
}

/// Whether grants ever counted.
pub(crate) fn was_managed() -> bool {
    shared().ever_managed
}

/// Does `what`, which is told whether grants count; that does not change meanwhile.
pub(crate) fn while_managed(what: impl FnOnce(bool)) {
    let shared = shared();
    what(shared.managed);
}

/// Sends a message if there is a session; otherwise the next `Hello` will say all.
pub(crate) fn send(message: &ToAgent) {
    tell(|| Some(message.clone()));
}

/// Sends what `act` says, if there is a session; none begins while it acts. So of two that speak of the same thing the later one
/// has the last word.
pub(crate) fn tell(act: impl FnOnce() -> Option<ToAgent>) {
    let mut shared = shared();
    let message = act();
    let (Some(line), Some(message)) = (&mut shared.line, message) else { return };
    let packet = match frame::encode(&message) {
        Ok(packet) => packet,
        Err(error) => {
            crate::log::warning!("{error}");
            return;
        }
    };
    let broken = if line.outbox.is_empty() {
        match transmit(&line.socket, &packet, None) {
            Err(Errno::AGAIN) => {
                queue(&mut line.outbox, Kind::of(&message), packet);
                line.ring().is_err()
            }
            sent => sent.is_err(),
        }
    } else {
        queue(&mut line.outbox, Kind::of(&message), packet);
        line.outbox.len() > OUTBOX_LIMIT
    };
    if broken {
        // The control thread sees the end of the session and begins a new one.
        hang_up(&line.socket);
    }
}

/// Gives back a part of the grant: `change` books it and says how much, and the agent is told, with no `Hello` in between
/// (which would tell of the new grant, and `Released` would count twice). Without a ticket nobody is told.
pub(crate) fn release(ticket: Option<Ticket>, device: DeviceId, change: impl FnOnce() -> u64) -> u64 {
    let mut bytes = 0;
    tell(|| {
        bytes = change();
        (bytes > 0 && ticket.is_some()).then_some(ToAgent::Released { ticket, device, bytes: Bytes(bytes) })
    });
    bytes
}

/// A session begins: `greet` says what the process holds, through `socket`. From here on all that changes is said too, in
/// order; the lock is held until then. Returns whether grants counted before.
pub(crate) fn begin<E>(
    socket: &Arc<Own>,
    bell: &Arc<Own>,
    greet: impl FnOnce() -> Result<(), E>,
) -> Result<bool, E> {
    let mut shared = shared();
    greet()?;
    shared.line = Some(Line { socket: Arc::clone(socket), bell: Arc::clone(bell), outbox: VecDeque::new() });
    Ok(std::mem::replace(&mut shared.managed, true))
}

/// The agent has welcomed this client.
pub(crate) fn welcomed() {
    shared().ever_managed = true;
}

/// The session on `socket` ends.
pub(crate) fn end(socket: &Own) {
    shared().line = None;
    hang_up(socket);
    asks::nobody_answers();
}

/// Whether something waits to be sent.
pub(crate) fn is_pending() -> bool {
    shared().line.as_ref().is_some_and(|line| !line.outbox.is_empty())
}

/// Sends what waits, as far as `socket` takes it.
pub(crate) fn flush(socket: &Own) {
    let mut shared = shared();
    let Some(line) = &mut shared.line else { return };
    while let Some((_, packet)) = line.outbox.front() {
        // Any other error shows up when the socket is read.
        if transmit(socket, packet, None).is_err() {
            return;
        }
        line.outbox.pop_front();
    }
}

/// There was an agent on this node, and it is not there now. Others like this client live beside it: where the device has no
/// room for an allocation it must wait for them, holding nothing, instead of failing as without nvshare.
static ORPHAN: AtomicBool = AtomicBool::new(false);

/// See [`ORPHAN`].
pub(crate) fn is_orphan() -> bool {
    ORPHAN.load(Ordering::Acquire)
}

/// See [`ORPHAN`].
pub(crate) fn set_orphan(orphan: bool) {
    ORPHAN.store(orphan, Ordering::Release);
}

/// Nothing comes or goes on it any more.
fn hang_up(socket: &Own) {
    if let Ok(socket) = socket.get() {
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    }
}

/// Sends one packet, with a descriptor or without.
pub(crate) fn transmit(
    socket: &Own,
    packet: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    wire::send(socket.get()?, packet, descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_a_program_changes_its_mind_only_the_last_word_waits() {
        let mut outbox = VecDeque::new();
        let device = DeviceId([1; 16]);
        let mut say =
            |message: ToAgent| queue(&mut outbox, Kind::of(&message), frame::encode(&message).unwrap());
        let want = |total, purpose| ToAgent::Want { device, total: Bytes(total), purpose };
        let released = ToAgent::Released { ticket: None, device, bytes: Bytes(1) };
        for total in 0..10_000 {
            say(want(total, Purpose::Allocation));
            say(ToAgent::Unswappable { device, bytes: Bytes(total), reason: "vmm".into() });
        }
        say(released.clone());
        say(want(7, Purpose::Work));
        say(want(8, Purpose::Allocation));
        say(released.clone());
        let waits: Vec<ToAgent> = outbox.iter().map(|(_, packet)| frame::decode(packet).unwrap()).collect();
        let unswappable = ToAgent::Unswappable { device, bytes: Bytes(9_999), reason: "vmm".into() };
        let last =
            [unswappable, released.clone(), want(7, Purpose::Work), want(8, Purpose::Allocation), released];
        assert_eq!(waits, last);
    }
}
