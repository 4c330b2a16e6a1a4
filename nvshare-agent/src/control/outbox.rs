//! The way of the agent's messages to one client: a queue that never blocks whoever sends.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvshare_common::frame::{self, FrameError};
use nvshare_common::protocol::{Answer, ToShim};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

/// How many packets may wait for a client to read them. One that does not read loses its session.
const QUEUE: usize = 512;

/// A packet on its way to a client.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptor: Option<Arc<OwnedFd>>,
}

/// The way to a client. Never blocks.
#[derive(Clone, Debug)]
pub struct Outbox {
    packets: mpsc::Sender<Packet>,
    dismissed: Arc<Notify>,
}

/// A message that could not be queued, because the client does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's queue is full")]
pub struct Undelivered;

impl Outbox {
    /// A way, with the packets that come out of it, and what tells that the session has to end.
    pub(super) fn new() -> (Outbox, mpsc::Receiver<Packet>, Arc<Notify>) {
        let (packets, outgoing) = mpsc::channel(QUEUE);
        let dismissed = Arc::new(Notify::new());
        (Outbox { packets, dismissed: Arc::clone(&dismissed) }, outgoing, dismissed)
    }

    /// Answers `Hello`.
    pub fn answer(&self, answer: &Answer) -> Result<(), Undelivered> {
        self.queue(frame::encode_answer(answer), None)
    }

    /// Sends a message.
    pub fn send(&self, message: &ToShim, descriptor: Option<Arc<OwnedFd>>) -> Result<(), Undelivered> {
        self.queue(frame::encode(message), descriptor)
    }

    /// Ends the session, whatever still waits to be sent.
    pub fn dismiss(&self) {
        self.dismissed.notify_one();
    }

    fn queue(
        &self,
        packet: Result<Vec<u8>, FrameError>,
        descriptor: Option<Arc<OwnedFd>>,
    ) -> Result<(), Undelivered> {
        match packet {
            Ok(bytes) => match self.packets.try_send(Packet { bytes, descriptor }) {
                Err(TrySendError::Full(_)) => Err(Undelivered),
                // The session has ended, which is no fault of the client's; what it says of it is on its way.
                Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
            },
            Err(error) => {
                // The lists we send are bounded: this is a mistake of ours, not the client's.
                tracing::error!(%error, "a message cannot be sent");
                Err(Undelivered)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_is_told_apart_from_one_that_has_ended() {
        let (packets, outgoing) = mpsc::channel(1);
        let outbox = Outbox { packets, dismissed: Arc::default() };
        let answer = Answer::Refused { why: "no".to_owned() };
        assert_eq!(outbox.answer(&answer), Ok(()));
        assert_eq!(outbox.answer(&answer), Err(Undelivered));
        drop(outgoing);
        assert_eq!(outbox.answer(&answer), Ok(()));
    }
}
