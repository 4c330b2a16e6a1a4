//! Memory that one process shares with another by CUDA IPC: the ticket that the owner gives out in the place of the driver's
//! handle, and what it answers to who comes with one, over a socket. Both are shims, perhaps of two releases: a ticket names the
//! form of what is said. The socket stays open as long as the memory is: until then its owner leaves that where it is.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::ids::DeviceId;

/// The length of a ticket: that of the driver's handle.
pub const TICKET_BYTES: usize = 64;
const MAGIC: [u8; 7] = *b"nvshare";
/// The form of tickets and answers.
const FORM: u8 = 2;
/// The most pieces of one allocation: an answer is one packet.
pub const PIECES: usize = 8192;

/// Names an allocation of another process, and shows that its owner gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    /// Where the owner listens: see [`Ticket::name`].
    pub place: [u8; 16],
    /// Its number for the allocation.
    pub number: u64,
    /// Who knows this got the ticket.
    pub secret: [u8; 16],
}

impl Ticket {
    /// As the application passes it on.
    #[must_use]
    pub fn write(&self) -> [u8; TICKET_BYTES] {
        let mut bytes = [0; TICKET_BYTES];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = FORM;
        bytes[8..24].copy_from_slice(&self.place);
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..48].copy_from_slice(&self.secret);
        bytes
    }

    /// Reads a handle; `None`: it is the driver's, or a ticket of a form that this build does not know.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Ticket> {
        let bytes: &[u8; TICKET_BYTES] = bytes.try_into().ok()?;
        let part = |at: usize| -> [u8; 16] { std::array::from_fn(|index| bytes[at + index]) };
        let number = u64::from_le_bytes(std::array::from_fn(|index| bytes[24 + index]));
        (bytes[..7] == MAGIC && bytes[7] == FORM && bytes[48..] == [0; 16]).then(|| Ticket {
            place: part(8),
            number,
            secret: part(32),
        })
    }

    /// The name of the abstract socket where the owner listens, in its network namespace.
    #[must_use]
    pub fn name(&self) -> String {
        format!("nvshare-share-{:032x}", u128::from_be_bytes(self.place))
    }
}

/// What the owner says of the memory behind a ticket, before the descriptors of its pieces, each in a packet of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// There is no such memory (any more).
    Gone,
    /// There is.
    Given {
        /// The card.
        device: DeviceId,
        /// What the owner asked for.
        bytes: Bytes,
        /// Where that begins in the first piece.
        offset: Bytes,
        /// The lengths of the pieces, in order.
        pieces: Vec<Bytes>,
    },
    /// There may be: the owner brings it to the card first, which takes as long as it takes. Said before anything else.
    Coming,
}

/// What a packet holds besides the descriptor of a piece.
pub const PIECE: &[u8] = b"piece";
/// The last word of who opened it: nothing of it is mapped there any more. Who goes without it may have closed a socket that it
/// did not know, and is believed when its process has ended.
pub const RETURNED: &[u8] = b"returned";

impl Answer {
    /// Whether it makes sense: pieces with something in them, which hold the allocation.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let Answer::Given { bytes, offset, pieces, .. } = self else { return true };
        let whole = pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.0));
        let end = offset.0.checked_add(bytes.0);
        !pieces.is_empty()
            && pieces.len() <= PIECES
            && pieces.iter().all(|piece| piece.0 > 0)
            && bytes.0 > 0
            && matches!((end, whole), (Some(end), Some(whole)) if end <= whole)
            && offset.0 < pieces[0].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    const TICKET: Ticket = Ticket { place: [3; 16], number: 0x8000_0000_0000_0007, secret: [9; 16] };

    #[test]
    fn a_ticket_is_read_as_it_was_written_and_what_is_none_is_not() {
        let bytes = TICKET.write();
        assert_eq!(Ticket::read(&bytes), Some(TICKET));
        assert_eq!(Ticket::read(&bytes[..63]), None);
        assert_eq!(Ticket::read(&[0; TICKET_BYTES]), None);
        for at in (0..8).chain(48..64) {
            let mut other = bytes;
            other[at] ^= 1;
            assert_eq!(Ticket::read(&other), None, "byte {at}");
        }
        assert_eq!(TICKET.name(), "nvshare-share-03030303030303030303030303030303");
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_told_from_one_that_does() {
        let given = |bytes, offset, pieces: &[u64]| Answer::Given {
            device: DeviceId([1; 16]),
            bytes: Bytes(bytes),
            offset: Bytes(offset),
            pieces: pieces.iter().copied().map(Bytes).collect(),
        };
        let sound = given(100, 28, &[64, 64]);
        assert!(sound.is_sound() && Answer::Gone.is_sound());
        assert_eq!(frame::decode::<Answer>(&frame::encode(&sound).unwrap()).unwrap(), sound);
        for wrong in [
            given(0, 0, &[64]),
            given(64, 1, &[64]),
            given(1, 64, &[64, 64]),
            given(1, 0, &[]),
            given(1, 0, &[64, 0]),
            given(u64::MAX, 1, &[64]),
            given(1, 0, &[u64::MAX, 1]),
            given(1, 0, &vec![1; PIECES + 1]),
        ] {
            assert!(!wrong.is_sound(), "{wrong:?}");
        }
        let longest = given(1, 0, &vec![64 << 20; PIECES]);
        assert!(longest.is_sound() && frame::encode(&longest).is_ok(), "one packet");
    }
}
