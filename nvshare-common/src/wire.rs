//! Packets on a `SOCK_SEQPACKET` socket between agent and shim, each with at most one descriptor. Nothing here waits.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Result;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// What was read.
#[derive(Debug)]
pub enum Received {
    /// One packet: its length in the buffer, and the first of its descriptors.
    Packet(usize, Option<OwnedFd>),
    /// A packet larger than the buffer.
    TooLong,
    /// The peer is gone.
    End,
}

/// Reads one packet into `buffer`. Descriptors beyond the first are closed.
///
/// # Errors
/// `AGAIN` where nothing is there to be read, else what `recvmsg` says.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut parts, &mut control, flags)?;
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for one in descriptors {
                descriptor.get_or_insert(one);
            }
        }
    }
    if received.bytes == 0 {
        // An empty packet looks the same as the end, and is no message either.
        return Ok(Received::End);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Received::TooLong);
    }
    Ok(Received::Packet(received.bytes, descriptor))
}

/// Sends one packet whole.
///
/// # Errors
/// `AGAIN` where the socket does not take it now, else what `sendmsg` says. No `SIGPIPE`.
pub fn send(socket: impl AsFd, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if descriptor.is_some() {
        control.push(SendAncillaryMessage::ScmRights(descriptor.as_slice()));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags).map(|_| ())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_packet_arrives_whole_with_its_descriptor() {
        let (left, right) = pair();
        send(&left, b"first", Some(left.as_fd())).unwrap();
        send(&left, b"second", None).unwrap();
        let mut buffer = [0; 16];
        let Received::Packet(5, Some(sent)) = receive(&right, &mut buffer).unwrap() else {
            panic!("not as sent")
        };
        assert_eq!(&buffer[..5], b"first");
        // It leads to the socket that was sent.
        send(&sent, b"third", None).unwrap();
        assert!(matches!(receive(&right, &mut buffer), Ok(Received::Packet(6, None))));
        assert!(matches!(receive(&right, &mut buffer), Ok(Received::Packet(5, None))));
        assert_eq!(receive(&right, &mut buffer).unwrap_err(), Errno::AGAIN);
    }

    #[test]
    fn a_packet_that_is_too_long_is_not_taken_for_a_shorter_one() {
        let (left, right) = pair();
        send(&left, &[7; 100], None).unwrap();
        send(&left, &[8; 16], None).unwrap();
        let mut buffer = [0; 16];
        assert!(matches!(receive(&right, &mut buffer), Ok(Received::TooLong)));
        assert!(matches!(receive(&right, &mut buffer), Ok(Received::Packet(16, None))));
        drop(left);
        assert!(matches!(receive(&right, &mut buffer), Ok(Received::End)));
        assert_eq!(send(&right, b"nobody reads", None).unwrap_err(), Errno::PIPE);
    }
}
