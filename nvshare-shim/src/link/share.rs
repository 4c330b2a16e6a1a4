//! The owner and the opener of shared memory, over an abstract socket of the owner's: who comes with a ticket gets the descriptors
//! of what it names. Both are processes of one user; no agent is needed. The thread that answers is nobody's who waits at the
//! gate, and what it gives stays where it is.

#![expect(unsafe_code, reason = "random bytes")]

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nvshare_common::frame;
use nvshare_common::share::{Answer, TICKET_BYTES, Ticket};
use nvshare_common::wire::{self, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;

use crate::allocation::{opened, shared};
use crate::cuda::CUresult;
use crate::descriptors::Own;
use crate::{log, threads};

/// How long the other side may take to say the next thing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long who comes may take to show a ticket: others wait meanwhile.
const HURRY: Duration = Duration::from_secs(2);
/// The application may have closed what we wait on: so often it is looked.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// What a piece's packet holds besides its descriptor.
const PIECE: &[u8] = b"piece";

/// The ticket for the allocation around `at`; `None`: it is not ours, or cannot be shared. Inside a pass of the gate.
pub(crate) fn ticket(at: u64) -> Option<[u8; TICKET_BYTES]> {
    let place = place()?;
    let (number, secret) = shared::share(at, random()?)?;
    Some(Ticket { place, number, secret }.write())
}

static PLACE: OnceLock<Option<[u8; 16]>> = OnceLock::new();

/// Where this process answers; the first time, it begins to. Not inside a pass of the gate, the first time.
pub(crate) fn place() -> Option<[u8; 16]> {
    *PLACE.get_or_init(|| {
        begin().inspect_err(|why| log::warning!("memory cannot be shared by IPC: {why}")).ok()
    })
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
    threads::engine_thread("share", move || serve(&socket)).map_err(|error| error.to_string())?;
    Ok(place)
}

fn random() -> Option<[u8; 16]> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the buffer has that many bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    (got == 16).then_some(bytes)
}

fn serve(listener: &Own) {
    loop {
        match listener.get() {
            // The application closed it, and what has its number now is not ours.
            Err(_) => return,
            Ok(at) => drop(ready(at, PollFlags::IN, Instant::now() + LOOK_AGAIN)),
        }
        let accepted =
            listener.get().and_then(|at| accept_with(at, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK));
        match accepted.and_then(Own::new) {
            Ok(socket) => {
                if catch_unwind(AssertUnwindSafe(|| answer(&socket))).is_err() {
                    log::error!(
                        "answering who opens shared memory met an error of our own; please report it"
                    );
                }
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::BADF) => {}
            // No descriptor is left, for example.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whoever it is: gives what the ticket names.
fn answer(socket: &Own) {
    let said = (|| {
        let who = socket_peercred(socket.get()?)?;
        if who.uid != geteuid() && !who.uid.is_root() {
            log::warning!(
                "process {} of user {} wants shared memory of this one: refused",
                who.pid.as_raw_nonzero(),
                who.uid.as_raw()
            );
            return Ok(());
        }
        let mut shown = [0; TICKET_BYTES + 1];
        let Some(length) = heard(socket, &mut shown, Instant::now() + HURRY)?.map(|(length, _)| length)
        else {
            return Ok(());
        };
        let known = Ticket::read(&shown[..length])
            .and_then(|ticket| Some((ticket.number, shared::given(ticket.number, ticket.secret)?)));
        let Some((number, (given, handles))) = known else { return say(socket, &Answer::Gone) };
        say(socket, &given)?;
        for handle in handles {
            let descriptor = shared::export(handle);
            // Only what is still there is what was asked for.
            match descriptor {
                Ok(descriptor) if shared::is_given(number) => send(socket, PIECE, Some(&descriptor))?,
                _ => return Ok(()),
            }
        }
        Ok(())
    })();
    if let Err(error) = said {
        let error: Errno = error;
        log::debug!("who opens shared memory of this process went away: {error}");
    }
}

fn say(socket: &Own, answer: &Answer) -> rustix::io::Result<()> {
    let packet = frame::encode(answer).map_err(|_| Errno::MSGSIZE)?;
    send(socket, &packet, None)
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
            Err(Errno::AGAIN) if ready(socket.get()?, PollFlags::IN, deadline)? => {}
            Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until there is something, or until the deadline: then `false`.
fn ready(socket: impl AsFd, wanted: PollFlags, deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&socket, wanted)], limit.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready.map(|count| count > 0),
        }
    }
}

/// Opens what a ticket names, in the current context: its address here.
pub(crate) fn open(ticket: Ticket) -> Result<u64, CUresult> {
    if PLACE.get() == Some(&Some(ticket.place)) {
        // As the driver answers who opens its own.
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    opened::open(ticket, || {
        let refused = |why: String| {
            log::warning!("shared memory of another process cannot be opened: {why}");
            CUresult::CUDA_ERROR_INVALID_VALUE
        };
        let (socket, answer) = ask(&ticket).map_err(refused)?;
        let next = move || {
            let mut buffer = [0; 16];
            match heard(&socket, &mut buffer, Instant::now() + PATIENCE) {
                Ok(Some((_, Some(descriptor)))) => Ok(descriptor),
                Ok(_) => Err(refused("its owner has freed it just now".into())),
                Err(error) => Err(refused(format!("its owner does not give it: {error}"))),
            }
        };
        Ok((answer, next))
    })
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
    let mut buffer = vec![0; frame::MAX_BYTES];
    let length = match heard(&socket, &mut buffer, Instant::now() + PATIENCE) {
        Ok(Some((length, _))) => length,
        Ok(None) => return Err("its owner refuses: it is another user's".into()),
        Err(error) => return Err(format!("its owner does not answer: {error}")),
    };
    match frame::decode::<Answer>(&buffer[..length]) {
        Ok(Answer::Gone) => Err("its owner has freed it, or gave out another ticket".into()),
        Ok(answer) if answer.is_sound() => Ok((socket, answer)),
        Ok(_) => Err("its owner's answer makes no sense".into()),
        Err(error) => Err(error.to_string()),
    }
}
