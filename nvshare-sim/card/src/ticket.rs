//! What one process hands another by whatever way, to find something of the card by: 64 bytes that say what kind of thing it
//! is and which. And descriptors that stand for a memory pool.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{pread, pwrite};

/// The bytes of a `CUipcMemHandle`, a `CUipcEventHandle` or a `CUmemPoolPtrExportData`.
pub type Ticket = [u8; 64];

/// What a ticket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory of `cuMemAlloc`.
    Memory,
    /// An event.
    Event,
    /// A piece of a memory pool.
    Piece,
}

impl Kind {
    fn magic(self) -> [u8; 8] {
        *match self {
            Kind::Memory => b"nvs-ipcm",
            Kind::Event => b"nvs-ipce",
            Kind::Piece => b"nvs-pool",
        }
    }
}

/// A ticket of the cards with this tag.
pub(crate) fn write(kind: Kind, number: u64, tag: [u8; 16]) -> Ticket {
    let mut ticket = [0; 64];
    ticket[..8].copy_from_slice(&kind.magic());
    ticket[8..16].copy_from_slice(&number.to_le_bytes());
    ticket[16..32].copy_from_slice(&tag);
    ticket
}

/// What a ticket is for, if it is of this kind and of these cards.
pub(crate) fn read(kind: Kind, ticket: &Ticket, tag: [u8; 16]) -> Option<u64> {
    let known = ticket[..8] == kind.magic() && ticket[16..32] == tag;
    known.then(|| u64::from_le_bytes(ticket[8..16].try_into().expect("eight bytes")))
}

/// A memory pool that a process exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolName {
    /// Different for every pool that was ever exported.
    pub number: u64,
    /// The card of its memory.
    pub card: usize,
}

const POOL: [u8; 8] = *b"nvs-pdsc";

/// A descriptor that stands for a pool; what it says lives as long as it does.
pub(crate) fn pool_descriptor(pool: PoolName, tag: [u8; 16]) -> rustix::io::Result<OwnedFd> {
    let file = memfd_create(c"nvshare-sim-pool", MemfdFlags::CLOEXEC)?;
    let mut content = [0; 40];
    content[..8].copy_from_slice(&POOL);
    content[8..16].copy_from_slice(&pool.number.to_le_bytes());
    content[16..24].copy_from_slice(&(pool.card as u64).to_le_bytes());
    content[24..].copy_from_slice(&tag);
    pwrite(file.as_fd(), &content, 0)?;
    Ok(file)
}

/// The pool that a descriptor stands for, if it is of these cards.
pub(crate) fn pool_of(descriptor: BorrowedFd<'_>, tag: [u8; 16]) -> Option<PoolName> {
    let mut content = [0; 40];
    let length = pread(descriptor, &mut content, 0).ok()?;
    let word = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().expect("eight bytes"));
    let known = length == content.len() && content[..8] == POOL && content[24..] == tag;
    known.then(|| PoolName { number: word(8), card: word(16) as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_says_what_it_is_for_to_those_of_the_same_cards_alone() {
        let ticket = write(Kind::Memory, 7, [1; 16]);
        assert_eq!(read(Kind::Memory, &ticket, [1; 16]), Some(7));
        assert_eq!(read(Kind::Event, &ticket, [1; 16]), None);
        assert_eq!(read(Kind::Memory, &ticket, [2; 16]), None);
        assert_eq!(read(Kind::Memory, &[0; 64], [0; 16]), None);
    }

    #[test]
    fn a_descriptor_of_a_pool_says_which_and_others_say_nothing() {
        let pool = PoolName { number: 9, card: 1 };
        let descriptor = pool_descriptor(pool, [3; 16]).expect("a descriptor");
        assert_eq!(pool_of(descriptor.as_fd(), [3; 16]), Some(pool));
        assert_eq!(pool_of(descriptor.as_fd(), [4; 16]), None);
        let other = std::fs::File::open("/proc/self/exe").expect("this executable");
        assert_eq!(pool_of(other.as_fd(), [3; 16]), None);
    }
}
