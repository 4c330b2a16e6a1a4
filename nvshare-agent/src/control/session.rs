//! One session: a task that carries packets between a client's socket and the conductor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent_core::ledger::SessionId;
use nvshare_common::frame::{self, FrameError, MAX_BYTES};
use nvshare_common::protocol::{Answer, OLDEST, ToAgent, VERSION};
use nvshare_common::wire::{self, Received};
use rustix::io::retry_on_intr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connections::{Connections, Counted};
use super::listener::Heard;
use super::outbox::Packet;
use super::{CounterPage, End, Event, Opened, Outbox, PageError, Peer, Refusal};
use crate::ready::wait_for;

/// How long a client may take to say `Hello`.
pub(super) const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Carries the connection from its beginning to its end.
pub(super) async fn carry<H: Heard>(
    socket: OwnedFd,
    id: SessionId,
    tell: impl Fn(Event) -> H + Send + Sync,
    connections: Connections,
) {
    // A shim that is refused never comes again: only what will not change is answered. Otherwise the connection is closed,
    // and the shim tries again later.
    let turn_away = async |refusal: Refusal, why: String| {
        tracing::debug!(session = id.0, why, "connection closed");
        if connections.turned_away(Instant::now()) {
            let _ = tell(Event::Refused(refusal)).await;
        }
    };
    let refuse = async |socket: &OwnedFd, refusal: Refusal, why: String| {
        tracing::info!(session = id.0, why, "connection refused");
        if let Ok(bytes) = frame::encode_answer(&Answer::Refused { why }) {
            let _ = wire::send(socket, &bytes, None);
        }
        let _ = tell(Event::Refused(refusal)).await;
    };
    let peer = match Peer::of(&socket) {
        Ok(peer) => peer,
        Err(error) => return turn_away(Refusal::Unknown, error.to_string()).await,
    };
    let pid = peer.process.pid;
    let Some(counted) = connections.count(peer.process, &peer.cgroup, Instant::now()).map(Arc::new) else {
        return turn_away(
            Refusal::TooMany,
            format!("too many connections of process {pid}, its cgroup, or all"),
        )
        .await;
    };
    // Before it is read who it says it is: who comes again and again waits here.
    if let Some(pause) = counted.came(Instant::now()) {
        tokio::time::sleep(pause).await;
    }
    let Ok(socket) = wait_for(socket, Interest::READABLE | Interest::WRITABLE) else { return };
    let mut buffer = vec![0; MAX_BYTES];
    let hello = match tokio::time::timeout(HELLO_LIMIT, receive(&socket, &mut buffer)).await {
        Err(_) => Err(End::Silent),
        Ok(Err(end)) => Err(end),
        Ok(Ok((length, descriptor))) => Ok((frame::decode_hello(&buffer[..length]), descriptor)),
    };
    let (hello, descriptor) = match hello {
        Ok((Ok(hello), descriptor)) => (hello, descriptor),
        Ok((Err(FrameError::Version { theirs }), _)) => {
            let why = format!(
                "the shim of process {pid} speaks protocol {theirs}, this agent ({}) {OLDEST} to {VERSION}: use one \
                 release for both",
                env!("CARGO_PKG_VERSION")
            );
            return refuse(socket.get_ref(), Refusal::Version, why).await;
        }
        Ok((Err(error), _)) => return refuse(socket.get_ref(), Refusal::Malformed, error.to_string()).await,
        Err(end) => {
            tracing::info!(session = id.0, pid, %end, "no session");
            let _ = tell(Event::Refused(Refusal::of(&end))).await;
            return;
        }
    };
    let page = descriptor.ok_or(PageError::Absent).and_then(CounterPage::map);
    let (outbox, outgoing, dismissed) = Outbox::new();
    let opened = Opened { peer, hello, page, outbox, counted: Arc::clone(&counted) };
    if !tell(Event::Opened(Box::new(opened))).await {
        return;
    }
    let end = tokio::select! {
        end = converse(&socket, &mut buffer, &tell, outgoing, &counted) => end,
        () = dismissed.notified() => End::Dismissed,
    };
    if let End::Malformed(_) = end {
        tracing::warn!(session = id.0, pid, %end, "session closed");
    } else {
        tracing::debug!(session = id.0, pid, %end, "session closed");
    }
    let _ = tell(Event::Closed(end)).await;
    drop(counted);
}

/// Carries packets both ways until one side ends.
async fn converse<H: Heard>(
    socket: &AsyncFd<OwnedFd>,
    buffer: &mut [u8],
    tell: &(impl Fn(Event) -> H + Sync),
    mut outgoing: mpsc::Receiver<Packet>,
    counted: &Counted,
) -> End {
    // A client that does not read must still be heard (what it releases), and one that floods must still be answered.
    let speak = async {
        while let Some(packet) = outgoing.recv().await {
            if let Err(end) = send(socket, &packet).await {
                return end;
            }
        }
        End::Dismissed
    };
    let hear = async {
        loop {
            let (length, descriptor) = match receive(socket, buffer).await {
                Ok(received) => received,
                Err(end) => return end,
            };
            match frame::decode(&buffer[..length]) {
                Ok(message) => {
                    // Whatever else comes with a descriptor does not keep it open until it is heard.
                    let descriptor = descriptor.filter(|_| matches!(message, ToAgent::ArenaHeld { .. }));
                    if !tell(Event::Said(message, descriptor)).await {
                        return End::Dismissed;
                    }
                    if let Some(pause) = counted.said(Instant::now()) {
                        tokio::time::sleep(pause).await;
                    }
                }
                Err(error) => return End::Malformed(error.to_string()),
            }
        }
    };
    tokio::select! {
        end = hear => end,
        end = speak => end,
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Result<(usize, Option<OwnedFd>), End> {
    loop {
        let mut ready = socket.readable().await.map_err(|error| End::Broken(error.to_string()))?;
        match ready.try_io(|socket| Ok(retry_on_intr(|| wire::receive(socket, buffer))?)) {
            Err(_) => {}
            Ok(Ok(Received::Packet(length, descriptor))) => return Ok((length, descriptor)),
            Ok(Ok(Received::TooLong)) => {
                return Err(End::Malformed(format!("a packet of more than {MAX_BYTES} bytes")));
            }
            Ok(Ok(Received::End)) => return Err(End::Left),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Err(End::Left),
            Ok(Err(error)) => return Err(End::Broken(error.to_string())),
        }
    }
}

async fn send(socket: &AsyncFd<OwnedFd>, packet: &Packet) -> Result<(), End> {
    let descriptor = packet.descriptor.as_ref().map(AsFd::as_fd);
    loop {
        let mut ready = socket.writable().await.map_err(|error| End::Broken(error.to_string()))?;
        let send = |socket: &_| Ok(retry_on_intr(|| wire::send(socket, &packet.bytes, descriptor))?);
        match ready.try_io(send) {
            Err(_) => {}
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
                return Err(End::Left);
            }
            Ok(Err(error)) => return Err(End::Broken(error.to_string())),
        }
    }
}
