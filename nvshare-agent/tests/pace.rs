//! How much of a client is heard: through the socket, by one process with as many sessions as it likes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvshare_agent::conductor::INPUTS;
use nvshare_agent::control::{Event, Listener};
use nvshare_common::frame;
use nvshare_common::ids::Ticket;
use nvshare_common::protocol::{Hello, ToAgent};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};

/// See `control/pace.rs`.
const RATE: f64 = 2000.0;
const BURST: f64 = 4096.0;

/// An agent's ear without the agent: it counts what it hears.
struct Ear {
    directory: tempfile::TempDir,
    said: Arc<AtomicU64>,
    opened: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Ear {
    fn new() -> Ear {
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let listener = Listener::bind(&directory.path().join("agent.sock")).unwrap();
        let (events, mut heard) = tokio::sync::mpsc::channel(INPUTS);
        let tell = move |_, event| {
            let events = events.clone();
            async move { events.send(event).await.is_ok() }
        };
        runtime.spawn(listener.serve(tell, std::future::pending()));
        let (said, opened) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (Arc::clone(&said), Arc::clone(&opened));
        runtime.spawn(async move {
            let mut sessions = Vec::new();
            while let Some(event) = heard.recv().await {
                match event {
                    Event::Said(..) => {
                        counts.0.fetch_add(1, Ordering::Relaxed);
                    }
                    Event::Opened(opened) => {
                        counts.1.fetch_add(1, Ordering::Relaxed);
                        // The way to it: without it the session ends.
                        sessions.push(opened.outbox);
                    }
                    _ => {}
                }
            }
        });
        Ear { directory, said, opened, _runtime: runtime }
    }

    fn connect(&self) -> OwnedFd {
        session(&self.directory.path().join("agent.sock"))
    }
}

/// A session, with no page: its own fault.
fn session(path: &Path) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let hello = Hello { release: "0".into(), running: true, devices: vec![], arenas: 0, bypass: false };
    let _ = send(&socket, &frame::encode_hello(&hello).unwrap(), SendFlags::NOSIGNAL);
    socket
}

/// What one client may have had heard since `begun`, at most; a connection costs as much as so many messages.
fn allowed(begun: Instant) -> f64 {
    BURST + RATE * begun.elapsed().as_secs_f64()
}

const CONNECTION: f64 = 16.0;
/// How long a test goes on at least.
const WHILE: Duration = Duration::from_secs(2);
/// How long it may take until enough was heard, on a machine that does other things as well.
const LIMIT: Duration = Duration::from_mins(1);

/// Whether a test that has begun then goes on: it has heard `heard` so far, and wants to have heard `enough`.
fn goes_on(begun: Instant, heard: f64, enough: f64) -> bool {
    begun.elapsed() < WHILE || (heard <= enough && begun.elapsed() < LIMIT)
}

#[test]
fn a_client_that_floods_and_connects_anew_is_heard_no_more_than_one_that_stays() {
    let ear = Ear::new();
    let message = frame::encode(&ToAgent::Stopped { ticket: Ticket(1) }).unwrap();
    let begun = Instant::now();
    let mut sessions = 0;
    let heard = || ear.said.load(Ordering::Relaxed) as f64;
    while goes_on(begun, heard(), BURST / 2.0) || sessions <= 3 {
        let socket = ear.connect();
        // As much as goes at once: what is not read keeps its writer waiting.
        let turn = Instant::now();
        while send(&socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
            && turn.elapsed() < WHILE
        {}
        sessions += 1;
    }
    let said = ear.said.load(Ordering::Relaxed) as f64;
    assert!(said <= allowed(begun), "{said} messages in {:?}, {sessions} sessions", begun.elapsed());
    assert!(said > BURST / 2.0, "{said} messages: it is heard all the same");
}

#[test]
fn a_client_that_only_connects_again_and_again_is_heard_as_rarely() {
    let ear = Ear::new();
    let begun = Instant::now();
    let mut sessions = 0;
    while goes_on(begun, ear.opened.load(Ordering::Relaxed) as f64, 50.0) {
        drop(ear.connect());
        sessions += 1;
    }
    let opened = ear.opened.load(Ordering::Relaxed) as f64;
    let most = allowed(begun) / CONNECTION;
    assert!(opened <= most, "{opened} of {sessions} sessions, at most {most}");
    assert!(opened > 50.0, "{opened} of {sessions} sessions: it is heard all the same");
}
