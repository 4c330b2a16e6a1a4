//! Bytes on the socket. One packet is one message, at most [`MAX_BYTES`].
//!
//! The first packet of each side begins with [`MAGIC`] and the sender's protocol version (two bytes, little-endian);
//! this never changes, so that any two builds can tell each other their versions. All later packets are bare
//! [`postcard`] messages.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{Answer, Hello, OLDEST, VERSION};

/// The first bytes of a session, each way.
pub const MAGIC: [u8; 4] = *b"NVSH";
/// The largest packet.
pub const MAX_BYTES: usize = 64 << 10;

const HEAD: usize = MAGIC.len() + 2;
const WELCOME: u8 = 0;
const REFUSED: u8 = 1;

/// A packet that makes no sense. The session it came from ends; nothing else does.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too short, or other bytes than the magic: not one of ours.
    #[error("the peer does not speak nvshare's protocol (no `NVSH` at the start of its first packet)")]
    Magic,
    /// A version that this build does not understand.
    #[error("the peer speaks protocol {theirs}, this build {OLDEST} to {VERSION}: use one release for both")]
    Version {
        /// What the peer speaks.
        theirs: u16,
    },
    /// Not a message.
    #[error("a packet of {bytes} bytes is not a message of protocol {VERSION}: {why}")]
    Malformed {
        /// Its length.
        bytes: usize,
        /// What the decoder said.
        why: String,
    },
    /// A message that was about to be sent and does not fit.
    #[error("a message of {bytes} bytes is longer than a packet may be ({MAX_BYTES}): split its list")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// A message as a packet.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    within(postcard::to_stdvec(message).expect("messages hold only what postcard can write"))
}

/// A packet as a message. Trailing bytes are malformed.
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, FrameError> {
    let malformed = |why: String| FrameError::Malformed { bytes: packet.len(), why };
    match postcard::take_from_bytes(packet) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// A shim's first packet.
pub fn encode_hello(hello: &Hello) -> Result<Vec<u8>, FrameError> {
    let mut packet = head();
    packet.extend(encode(hello)?);
    within(packet)
}

/// Reads a shim's first packet.
pub fn decode_hello(packet: &[u8]) -> Result<Hello, FrameError> {
    let (version, body) = split(packet)?;
    understood(version)?;
    decode(body)
}

/// The agent's first packet. A refusal is plain text behind the head, readable by every version.
pub fn encode_answer(answer: &Answer) -> Result<Vec<u8>, FrameError> {
    let mut packet = head();
    match answer {
        Answer::Welcome { client, limits, sizes } => {
            packet.push(WELCOME);
            packet.extend(encode(&(client, limits, sizes))?);
        }
        Answer::Refused { why } => {
            packet.push(REFUSED);
            packet.extend(why.as_bytes());
        }
    }
    within(packet)
}

/// Reads the agent's first packet.
pub fn decode_answer(packet: &[u8]) -> Result<Answer, FrameError> {
    let (version, body) = split(packet)?;
    match body.split_first() {
        Some((&REFUSED, why)) => Ok(Answer::Refused { why: String::from_utf8_lossy(why).into_owned() }),
        Some((&WELCOME, welcome)) => {
            understood(version)?;
            let (client, limits, sizes) = decode(welcome)?;
            Ok(Answer::Welcome { client, limits, sizes })
        }
        _ => Err(FrameError::Malformed { bytes: packet.len(), why: "neither welcome nor refused".into() }),
    }
}

fn head() -> Vec<u8> {
    let mut packet = MAGIC.to_vec();
    packet.extend(VERSION.to_le_bytes());
    packet
}

fn split(packet: &[u8]) -> Result<(u16, &[u8]), FrameError> {
    if packet.len() < HEAD || packet[..MAGIC.len()] != MAGIC {
        return Err(FrameError::Magic);
    }
    Ok((u16::from_le_bytes([packet[HEAD - 2], packet[HEAD - 1]]), &packet[HEAD..]))
}

fn understood(theirs: u16) -> Result<(), FrameError> {
    if (OLDEST..=VERSION).contains(&theirs) { Ok(()) } else { Err(FrameError::Version { theirs }) }
}

fn within(packet: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    if packet.len() > MAX_BYTES { Err(FrameError::TooLong { bytes: packet.len() }) } else { Ok(packet) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{Bytes, DevicePtr, DeviceRange};
    use crate::ids::{ClientId, DeviceId, Ticket};
    use crate::protocol::{ToAgent, ToShim};
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello { release: "0.1.0".into(), running: true, devices: vec![], arenas: 0, bypass: false }
    }

    #[test]
    fn a_session_opens_and_a_refusal_is_read_by_any_version() {
        assert_eq!(decode_hello(&encode_hello(&hello()).unwrap()).unwrap(), hello());
        let limits = vec![(DeviceId([7; 16]), Bytes::GIB)];
        let welcome = Answer::Welcome { client: ClientId(7), limits: limits.clone(), sizes: limits };
        assert_eq!(decode_answer(&encode_answer(&welcome).unwrap()).unwrap(), welcome);
        let refused = Answer::Refused { why: "agent 0.9 speaks protocol 9".into() };
        let mut packet = encode_answer(&refused).unwrap();
        packet[4] = 200;
        assert_eq!(decode_answer(&packet).unwrap(), refused);
    }

    #[test]
    fn another_version_is_refused_with_both_versions_named() {
        let mut packet = encode_hello(&hello()).unwrap();
        packet[4] = 200;
        let said = decode_hello(&packet).unwrap_err().to_string();
        assert!(said.contains("protocol 200") && said.contains(&VERSION.to_string()), "{said}");
    }

    #[test]
    fn a_list_too_long_for_a_packet_is_refused_by_the_sender() {
        let range = DeviceRange { start: DevicePtr(u64::MAX), bytes: Bytes(u64::MAX) };
        let message = ToShim::SwapOut {
            ticket: Ticket(1),
            device: DeviceId([0; 16]),
            bytes: Bytes(1),
            coldest: vec![range; 10_000],
        };
        assert!(matches!(encode(&message), Err(FrameError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<ToAgent>(&bytes);
            let _ = decode::<ToShim>(&bytes);
            let _ = decode_hello(&bytes);
            let _ = decode_answer(&bytes);
        }

        #[test]
        fn what_decodes_encodes_to_an_equal_message(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = decode::<ToAgent>(&bytes) {
                prop_assert_eq!(decode::<ToAgent>(&encode(&message).unwrap()).unwrap(), message);
            }
        }
    }
}
