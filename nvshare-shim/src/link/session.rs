//! One conversation with the agent, as the control thread leads it: a `SOCK_SEQPACKET` socket, packets with at most one
//! descriptor. What other threads say meanwhile goes through [`line`](mod@line).

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::frame;
use nvshare_common::ids::{ClientId, DeviceId};
use nvshare_common::protocol::{Answer, Hello, KNOCK, ToAgent, ToShim};
use nvshare_common::wire::{self, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};

use super::alone;
use crate::descriptors::Own;
use crate::device::{self, terms};
use crate::line::{self, transmit};
use crate::turn::run_state;
use crate::{config, counters, shadow};

/// How long the agent may take to answer a `Hello`.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Nothing wakes who waits on descriptors that the application has closed: so often it is looked whether they are still ours.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Why there is no session (any more).
#[derive(Debug)]
pub(super) enum End {
    /// Nobody listens there.
    Connect(Errno),
    /// The agent does not want this client.
    Refused(String),
    /// The agent closed, died, or did not answer.
    Closed(String),
}

impl End {
    /// Whether it looks as if an agent had been there and died, rather than as if there was none.
    pub(super) const fn leaves_orphans(&self) -> bool {
        match self {
            End::Connect(error) => error.raw_os_error() == Errno::CONNREFUSED.raw_os_error(),
            End::Refused(_) => false,
            End::Closed(_) => true,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Connect(error) => write!(f, "cannot connect to {}: {error}", config::get().socket.display()),
            End::Refused(why) | End::Closed(why) => f.write_str(why),
        }
    }
}

/// A message with the descriptor that came along.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) message: ToShim,
    pub(super) descriptor: Option<OwnedFd>,
}

/// There is no agent any more, and nothing that one granted counts.
pub(super) fn unmanaged() {
    line::unmanage();
    for device in device::all() {
        device.state().space.set_terms(|terms| terms.unlimited = true);
        device.wake();
    }
}

/// The control thread's side of a conversation.
#[derive(Debug)]
pub(super) struct Session {
    socket: Arc<Own>,
    /// A pipe: other threads write to it so that this one looks.
    bell: Arc<Own>,
    heard: Own,
    buffer: Vec<u8>,
    client: ClientId,
    terms: Terms,
}

/// Limits and sizes of devices.
type Terms = (Vec<(DeviceId, Bytes)>, Vec<(DeviceId, Bytes)>);

impl Session {
    /// Connects, says what the process holds, and waits for the answer.
    pub(super) fn open() -> Result<Session, End> {
        Session::begin(dial().map_err(End::Connect)?)
    }

    /// The same on a socket that is connected already.
    pub(super) fn begin(socket: Own) -> Result<Session, End> {
        let (heard, bell) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(End::Connect)?;
        let own = |descriptor| Own::new(descriptor).map_err(End::Connect);
        let (socket, bell, heard) = (Arc::new(socket), Arc::new(own(bell)?), own(heard)?);
        let buffer = vec![0; frame::MAX_BYTES];
        let mut session =
            Session { socket, bell, heard, buffer, client: ClientId(0), terms: Terms::default() };
        let before = match session.greet() {
            Ok(before) => before,
            Err(end) => {
                // The terms of nobody: who was not managed before is not now.
                if !line::is_managed() {
                    unmanaged();
                }
                return Err(end);
            }
        };
        match session.answer() {
            Ok(welcome) => {
                (session.client, session.terms) = welcome;
                line::welcomed();
                Ok(session)
            }
            Err(end) => {
                session.close();
                if !before {
                    unmanaged();
                }
                Err(end)
            }
        }
    }

    /// The agent's number for this client.
    pub(super) const fn client(&self) -> ClientId {
        self.client
    }

    /// What the client was told of its limits, and of its devices' sizes, as it was welcomed.
    pub(super) fn terms(&mut self) -> Terms {
        std::mem::take(&mut self.terms)
    }

    /// Says `Hello`. Returns whether grants counted before.
    fn greet(&self) -> Result<bool, End> {
        let _still = alone::keep_still();
        line::begin(&self.socket, &self.bell, || self.hello())
    }

    /// What the process holds, with the line's lock held.
    fn hello(&self) -> Result<(), End> {
        let devices: Vec<_> = device::all().into_iter().filter(|device| device.is_manageable()).collect();
        terms::begin(&devices);
        for device in &devices {
            device.state().space.set_terms(|terms| {
                let used = terms.resident + terms.unswappable;
                terms.granted = if terms.unlimited { used } else { terms.granted.max(used) };
                terms.unlimited = false;
            });
        }
        let hello = Hello {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            running: run_state::holds_lease(),
            bypass: super::is_bypassed(),
            devices: devices.into_iter().map(device::held).collect(),
            arenas: shadow::with_agents_arenas(|_| ()).len() as u32,
        };
        let closed = |error: Errno| End::Closed(format!("cannot say hello: {error}"));
        let packet = frame::encode_hello(&hello).map_err(|error| End::Closed(error.to_string()))?;
        transmit(&self.socket, &packet, counters::descriptor()).map_err(closed)?;
        let sent = shadow::with_agents_arenas(|(arena, file)| {
            let packet = frame::encode(&ToAgent::ArenaHeld { arena })
                .map_err(|error| End::Closed(error.to_string()))?;
            transmit(&self.socket, &packet, Some(file)).map_err(closed)
        });
        sent.into_iter().collect()
    }

    fn answer(&mut self) -> Result<(ClientId, Terms), End> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(End::Closed("the agent does not answer".into()));
            }
            if !self.wait(Some(left))? {
                continue;
            }
            if let Some((length, _)) = self.packet()? {
                if self.buffer[..length] == *KNOCK {
                    continue;
                }
                return match frame::decode_answer(&self.buffer[..length]) {
                    Ok(Answer::Welcome { client, limits, sizes }) => Ok((client, (limits, sizes))),
                    Ok(Answer::Refused { why }) => Err(End::Refused(why)),
                    // Two releases stay what they are; anything else may be better the next time.
                    Err(error @ frame::FrameError::Version { .. }) => Err(End::Refused(error.to_string())),
                    Err(error) => Err(End::Closed(error.to_string())),
                };
            }
        }
    }

    /// The next message, if one comes within `limit` or before something else happens; sends what waits to be sent
    /// meanwhile.
    pub(super) fn receive(&mut self, limit: Option<Duration>) -> Result<Option<Incoming>, End> {
        if self.wait(limit)?
            && let Some((length, descriptor)) = self.packet()?
            && self.buffer[..length] != *KNOCK
        {
            let message =
                frame::decode(&self.buffer[..length]).map_err(|error| End::Closed(error.to_string()))?;
            return Ok(Some(Incoming { message, descriptor }));
        }
        Ok(None)
    }

    /// Ends the conversation.
    pub(super) fn close(&self) {
        line::end(&self.socket);
    }

    /// Waits until there is something to read (true), or something else happened.
    fn wait(&self, limit: Option<Duration>) -> Result<bool, End> {
        let wanted = if line::is_pending() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let [socket, bell] = [self.socket.get(), self.heard.get()]
            .map(|ours| ours.map_err(|_| End::Closed("the application closed our descriptors".into())));
        let (socket, bell) = (socket?, bell?);
        let mut both =
            [PollFd::from_borrowed_fd(socket, wanted), PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        let limit = limit.map_or(LOOK_AGAIN, |limit| limit.min(LOOK_AGAIN));
        let limit = Timespec::try_from(limit).ok();
        match poll(&mut both, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(End::Closed(format!("cannot wait for the agent: {error}"))),
        }
        let [on_socket, on_bell] = both.map(|one| one.revents());
        if on_bell.contains(PollFlags::IN)
            && let Ok(bell) = self.heard.get()
        {
            let _ = rustix::io::read(bell, &mut [0_u8; 64]);
        }
        if on_socket.contains(PollFlags::OUT) {
            line::flush(&self.socket);
        }
        Ok(on_socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
    }

    /// One packet into the buffer: its length and the descriptor that came along. `None`: nothing there after all.
    fn packet(&mut self) -> Result<Option<(usize, Option<OwnedFd>)>, End> {
        match self.socket.get().and_then(|socket| wire::receive(socket, &mut self.buffer)) {
            Ok(Received::Packet(length, descriptor)) => Ok(Some((length, descriptor))),
            Ok(Received::TooLong) => {
                Err(End::Closed(format!("a packet of more than {} bytes came", self.buffer.len())))
            }
            Ok(Received::End) => Err(End::Closed("it closed the connection".into())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(End::Closed(format!("the connection broke: {error}"))),
        }
    }
}

fn dial() -> rustix::io::Result<Own> {
    // Tried each second where there is no agent: each time the number that it gets first would be missing for the moment in
    // which the application counts on it, after a close. So nothing is opened where nobody listens, and else it is kept.
    static UNUSED: Mutex<Option<Own>> = Mutex::new(None);
    let path = &*config::get().socket;
    rustix::fs::stat(path)?;
    let address = SocketAddrUnix::new(path)?;
    let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
    let socket = if let Some(socket) = unused.take().filter(|socket| socket.get().is_ok()) {
        socket
    } else {
        // Non-blocking, so that an agent that accepts nobody is as good as none.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Own::new(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)?
    };
    match connect(socket.get()?, &address) {
        Ok(()) => Ok(socket),
        Err(error) => {
            *unused = Some(socket);
            Err(error)
        }
    }
}
