//! The owner of shared memory. Whoever comes with a ticket is lent what it names: gets the descriptors, and keeps the socket; the
//! memory stays where it is until they say that they returned it, or their process has ended. One thread listens, and one lends:
//! it goes through the gate, as the application would, so that what is out comes back first. Nobody in this process waits for
//! either.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nvshare_common::frame;
use nvshare_common::share::{Answer, PIECE, RETURNED, TICKET_BYTES, Ticket};
use nvshare_common::wire::{self, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use rustix::process::geteuid;

use super::peer::{Peer, random};
use super::send;
use crate::allocation::shared::{self, Loan};
use crate::descriptors::Own;
use crate::{log, threads, turn};

/// How long who comes may take to show a ticket.
const HURRY: Duration = Duration::from_secs(2);
/// The application may have closed what we wait on, and processes end: so often it is looked.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The same while somebody is being lent something, who then has to be listened to.
const LOOK_SOON: Duration = Duration::from_millis(20);

static PLACE: OnceLock<Option<[u8; 16]>> = OnceLock::new();

/// Where this process answers; the first time, it begins to. Not inside a pass of the gate, the first time.
pub(crate) fn place() -> Option<[u8; 16]> {
    *PLACE.get_or_init(|| {
        begin().inspect_err(|why| log::warning!("memory cannot be shared by IPC: {why}")).ok()
    })
}

/// Whether tickets of that place are this process's.
pub(super) fn is_here(place: [u8; 16]) -> bool {
    PLACE.get() == Some(&Some(place))
}

fn begin() -> Result<[u8; 16], String> {
    let place = random().ok_or("no random bytes")?;
    let named = Ticket { place, number: 0, secret: [0; 16] };
    let open = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = Own::new(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)?;
        bind(socket.get()?, &SocketAddrUnix::new_abstract_name(named.name().as_bytes())?)?;
        listen(socket.get()?, 64)?;
        Ok(socket)
    };
    let socket = open().map_err(|error: Errno| format!("no socket to answer at: {error}"))?;
    let (ask, asked) = channel();
    threads::engine_thread("lend", move || lend_all(&asked))
        .and_then(|_| threads::engine_thread("share", move || serve(&socket, &ask)))
        .map_err(|error| error.to_string())?;
    Ok(place)
}

/// Who came.
struct Guest {
    socket: Own,
    peer: Peer,
    state: State,
}

enum State {
    /// Has to show a ticket until then.
    Comes(Instant),
    /// Has been lent this.
    Has(Loan),
    /// Went without a word, or cannot be heard any more.
    Left { _lent: Loan },
    /// Is not to be looked after any more.
    Gone,
}

/// Those who have been lent something since it was last looked.
static LENT: Mutex<Vec<Guest>> = Mutex::new(Vec::new());

fn serve(listener: &Own, ask: &Sender<(Guest, Ticket)>) {
    let (mut guests, mut asking) = (Vec::<Guest>::new(), 0_usize);
    // Whether the application has not closed it: what has its number then is not ours.
    while listener.get().is_ok() || asking > 0 || !guests.is_empty() {
        wait(listener, &guests, if asking > 0 { LOOK_SOON } else { LOOK_AGAIN });
        if let Some(guest) = welcome(listener) {
            guests.push(guest);
        }
        for mut guest in std::mem::take(&mut guests) {
            match guest.look() {
                Some(ticket) => asking += usize::from(ask.send((guest, ticket)).is_ok()),
                None if matches!(guest.state, State::Gone) => {}
                None => guests.push(guest),
            }
        }
        let mut lent = LENT.lock().unwrap_or_else(PoisonError::into_inner);
        asking = asking.saturating_sub(lent.len());
        guests.append(&mut lent);
    }
}

/// Until somebody comes or says something, or so long.
fn wait(listener: &Own, guests: &[Guest], limit: Duration) {
    let heard = guests.iter().filter(|guest| !matches!(guest.state, State::Left { .. }));
    let sockets = heard.filter_map(|guest| guest.socket.get().ok());
    let all: Vec<BorrowedFd<'_>> = listener.get().into_iter().chain(sockets).collect();
    let mut polled: Vec<PollFd<'_>> = all.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    if poll(&mut polled, Timespec::try_from(limit).ok().as_ref()).is_err() {
        std::thread::sleep(LOOK_SOON);
    }
}

/// Who is at the door.
fn welcome(listener: &Own) -> Option<Guest> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accepted = listener.get().and_then(|at| accept_with(at, flags)).and_then(Own::new);
    let socket = match accepted {
        Ok(socket) => socket,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::BADF) => return None,
        // No descriptor is left, for example.
        Err(_) => {
            std::thread::sleep(LOOK_SOON);
            return None;
        }
    };
    let peer = socket.get().and_then(Peer::of).ok()?;
    if peer.user != geteuid().as_raw() && peer.user != 0 {
        log::warning!(
            "process {} of user {} wants shared memory of this one: refused",
            peer.process,
            peer.user
        );
        return None;
    }
    Some(Guest { socket, peer, state: State::Comes(Instant::now() + HURRY) })
}

impl Guest {
    /// Hears what it says; the ticket, when it shows one.
    fn look(&mut self) -> Option<Ticket> {
        if matches!(self.state, State::Left { .. }) {
            if self.peer.has_ended() {
                self.state = State::Gone;
            }
            return None;
        }
        let mut said = [0; TICKET_BYTES + 1];
        let heard = self.socket.get().and_then(|socket| wire::receive(socket, &mut said));
        match (std::mem::replace(&mut self.state, State::Gone), heard) {
            (State::Comes(until), Err(Errno::AGAIN | Errno::INTR)) if Instant::now() < until => {
                self.state = State::Comes(until);
            }
            (State::Comes(_), Ok(Received::Packet(length, _))) => {
                return Ticket::read(&said[..length]).filter(|_| say(&self.socket, &Answer::Coming).is_ok());
            }
            (State::Has(loan), Err(Errno::AGAIN | Errno::INTR)) => self.state = State::Has(loan),
            (State::Has(_), Ok(Received::Packet(length, _))) if &said[..length] == RETURNED => {}
            // Perhaps it only lost its socket: what it has mapped it may use.
            (State::Has(loan), _) => self.state = State::Left { _lent: loan },
            _ => {}
        }
        None
    }
}

fn lend_all(asked: &Receiver<(Guest, Ticket)>) {
    while let Ok((mut guest, ticket)) = asked.recv() {
        let lent = catch_unwind(AssertUnwindSafe(|| lend(&guest.socket, ticket)));
        guest.state = match lent {
            Ok(Ok(loan)) => loan.map_or(State::Gone, State::Has),
            Ok(Err(error)) => {
                log::debug!("who opens shared memory of this process went away: {error}");
                State::Gone
            }
            Err(_) => {
                log::error!("answering who opens shared memory met an error of our own; please report it");
                State::Gone
            }
        };
        LENT.lock().unwrap_or_else(PoisonError::into_inner).push(guest);
    }
}

/// Gives what the ticket names. Where that fails midway whoever came uses nothing of it: it has no address yet.
fn lend(socket: &Own, ticket: Ticket) -> rustix::io::Result<Option<Loan>> {
    let found = {
        let _pass = turn::pass();
        shared::lend(ticket.number, ticket.secret)
    };
    let Some((loan, given, handles)) = found else { return say(socket, &Answer::Gone).map(|()| None) };
    say(socket, &given)?;
    for handle in handles {
        // Only what is still there is what was asked for.
        match shared::export(handle) {
            Ok(descriptor) if loan.is_there() => send(socket, PIECE, Some(&descriptor))?,
            _ => return Ok(None),
        }
    }
    Ok(Some(loan))
}

fn say(socket: &Own, answer: &Answer) -> rustix::io::Result<()> {
    let packet = frame::encode(answer).map_err(|_| Errno::MSGSIZE)?;
    send(socket, &packet, None)
}
