//! The agent as these tests play it, message by message.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::frame;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};
use nvshare_common::protocol::{Answer, Hello, ToAgent, ToShim};
use nvshare_common::wire::{self, Received};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A socket where shims connect.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    pub(crate) fn bind(path: &Path) -> Listener {
        let _ = std::fs::remove_file(path);
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        Listener(socket)
    }

    /// The next shim that connects, welcomed.
    pub(crate) fn welcome(&self) -> Agent {
        self.welcome_within(Vec::new())
    }

    /// The next shim that connects, welcomed and told its limits.
    pub(crate) fn welcome_within(&self, limits: Vec<(DeviceId, Bytes)>) -> Agent {
        let (mut agent, hello) = self.accept();
        let answer = Answer::Welcome { client: ClientId(1), sizes: limits.clone(), limits };
        agent.packet(&frame::encode_answer(&answer).unwrap(), None);
        for _ in 0..hello.arenas {
            let message = agent.next("an arena of before");
            assert!(matches!(message, ToAgent::ArenaHeld { .. }), "{message:?}");
        }
        agent.hello = hello;
        agent
    }

    /// The next shim that connects, refused.
    pub(crate) fn refuse(&self) {
        let (agent, _) = self.accept();
        let answer = Answer::Refused { why: "a test refuses everybody".into() };
        agent.packet(&frame::encode_answer(&answer).unwrap(), None);
    }

    fn accept(&self) -> (Agent, Hello) {
        assert!(readable(self.0.as_fd(), LIMIT), "no shim connects");
        let socket = accept_with(&self.0, SocketFlags::CLOEXEC).unwrap();
        let agent = Agent {
            socket,
            hello: Hello {
                release: String::new(),
                running: false,
                devices: Vec::new(),
                arenas: 0,
                bypass: false,
            },
            tickets: 0,
            log: Vec::new(),
        };
        let hello = frame::decode_hello(&agent.receive("Hello")).unwrap();
        (agent, hello)
    }
}

/// One session, from the agent's side.
pub(crate) struct Agent {
    socket: OwnedFd,
    pub(crate) hello: Hello,
    tickets: u64,
    log: Vec<ToAgent>,
}

impl Agent {
    pub(crate) fn send(&self, message: &ToShim) {
        self.packet(&frame::encode(message).unwrap(), None);
    }

    /// Another end of the same session, to say something while this one listens.
    pub(crate) fn twin(&self) -> Agent {
        let hello = self.hello.clone();
        Agent { socket: self.socket.try_clone().unwrap(), hello, tickets: 1 << 32, log: Vec::new() }
    }

    /// Answers every question whether the client may have so much by `limit`, until the client has gone.
    pub(crate) fn allow(self, limit: &Arc<AtomicU64>) {
        let limit = Arc::clone(limit);
        std::thread::spawn(move || {
            while readable(self.socket.as_fd(), LIMIT) {
                let mut buffer = vec![0; frame::MAX_BYTES];
                let Ok(length @ 1..) = rustix::io::read(&self.socket, &mut *buffer) else { return };
                if let Ok(ToAgent::MayHave { ticket, total, .. }) = frame::decode(&buffer[..length]) {
                    let made = total.0 <= limit.load(Ordering::Relaxed);
                    self.send(&ToShim::Room { ticket, made });
                }
            }
        });
    }

    /// Gives the shim host memory.
    pub(crate) fn arena(&self, number: u64, bytes: u64) {
        let file =
            rustix::fs::memfd_create(c"arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let message = ToShim::Arena { arena: ArenaId(number), bytes: Bytes(bytes) };
        self.packet(&frame::encode(&message).unwrap(), Some(file.as_fd()));
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Stops the client; the drain must succeed.
    pub(crate) fn stop(&mut self) {
        let ticket = self.ticket();
        self.send(&ToShim::Stop { ticket, stall_ms: 5000 });
        self.until("Stopped", |message| (*message == ToAgent::Stopped { ticket }).then_some(()));
    }

    /// Swaps `bytes` out: what was released, and the last word.
    pub(crate) fn swap_out(&mut self, device: DeviceId, bytes: u64) -> (u64, ToAgent) {
        let ticket = self.ticket();
        self.send(&ToShim::SwapOut { ticket, device, bytes: Bytes(bytes), coldest: Vec::new() });
        let mut released = 0;
        let last = self.until("SwapOutDone or SwapFailed", |message| match message {
            ToAgent::Released { ticket: of, bytes, .. } if *of == Some(ticket) => {
                released += bytes.0;
                None
            }
            ToAgent::SwapOutDone { .. } | ToAgent::SwapFailed { .. } => Some(message.clone()),
            _ => None,
        });
        (released, last)
    }

    pub(crate) fn grant(&self, device: DeviceId, bytes: u64) {
        self.send(&ToShim::Grant { device, bytes: Bytes(bytes) });
    }

    /// Waits until everything is resident; the bytes copied in.
    pub(crate) fn resident(&mut self) -> u64 {
        self.until("Resident", |message| match message {
            ToAgent::Resident { copied, .. } => Some(copied.0),
            _ => None,
        })
    }

    /// What the client wants, as soon as it wants anything.
    pub(crate) fn wanted(&mut self) -> (DeviceId, u64) {
        self.until("Want", |message| match message {
            ToAgent::Want { device, total, .. } => Some((*device, total.0)),
            _ => None,
        })
    }

    /// Reads messages until one of them is what is looked for.
    pub(crate) fn until<T>(&mut self, what: &str, mut look: impl FnMut(&ToAgent) -> Option<T>) -> T {
        loop {
            let message = self.next(what);
            if let Some(found) = look(&message) {
                return found;
            }
        }
    }

    /// Whether nothing comes for that long.
    pub(crate) fn is_silent(&self, time: Duration) -> bool {
        !readable(self.socket.as_fd(), time)
    }

    fn next(&mut self, what: &str) -> ToAgent {
        let message: ToAgent = frame::decode(&self.receive(what)).unwrap();
        self.log.push(message.clone());
        message
    }

    fn receive(&self, what: &str) -> Vec<u8> {
        assert!(readable(self.socket.as_fd(), LIMIT), "no {what} comes; until now: {:?}", self.log);
        let mut buffer = vec![0; frame::MAX_BYTES];
        match wire::receive(&self.socket, &mut buffer).unwrap() {
            Received::Packet(length, _) => {
                buffer.truncate(length);
                buffer
            }
            other => panic!("{other:?} instead of {what}; until now: {:?}", self.log),
        }
    }

    fn packet(&self, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) {
        let deadline = Instant::now() + LIMIT;
        loop {
            match wire::send(&self.socket, packet, descriptor) {
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                sent => return sent.unwrap(),
            }
        }
    }
}

fn readable(descriptor: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap();
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count > 0,
            Err(Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
