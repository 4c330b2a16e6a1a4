//! Physical memory that the application made by itself (`cuMemCreate`): it lives from then on until the last reference to its
//! handle is released and the last mapping of it is gone, whichever comes last, and counts once all that time. A handle's
//! number may be used again while the memory it stood for lives on in its mappings. No context owns it. Pure.

use std::collections::BTreeMap;

use crate::cuda::sys;

/// One piece of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The device, as the driver numbers it.
    pub device: sys::CUdevice,
    /// How much; zero for what another process made, which counts it.
    pub bytes: u64,
}

#[derive(Debug)]
struct Living {
    piece: Piece,
    references: u32,
    mappings: u32,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Physical {
    pieces: BTreeMap<u64, Living>,
    last: u64,
    by_handle: BTreeMap<u64, u64>,
    /// Mappings by address: their length, and what is mapped.
    by_address: BTreeMap<u64, (u64, u64)>,
}

impl Physical {
    /// Nothing.
    pub const fn new() -> Physical {
        Physical { pieces: BTreeMap::new(), last: 0, by_handle: BTreeMap::new(), by_address: BTreeMap::new() }
    }

    /// The driver gave out `handle` for it.
    pub fn made(&mut self, handle: u64, piece: Piece) {
        self.last += 1;
        self.pieces.insert(self.last, Living { piece, references: 1, mappings: 0 });
        self.by_handle.insert(handle, self.last);
    }

    /// A reference was released. Returns the piece if that was its end.
    pub fn released(&mut self, handle: u64) -> Option<Piece> {
        let id = *self.by_handle.get(&handle)?;
        let living = self.pieces.get_mut(&id)?;
        living.references = living.references.saturating_sub(1);
        if living.references == 0 {
            self.by_handle.remove(&handle);
        }
        self.end(id)
    }

    /// It was mapped.
    pub fn mapped(&mut self, address: u64, bytes: u64, handle: u64) {
        let Some(id) = self.by_handle.get(&handle).copied() else { return };
        if let Some(living) = self.pieces.get_mut(&id) {
            living.mappings += 1;
            self.by_address.insert(address, (bytes, id));
        }
    }

    /// What was mapped there was unmapped: whole mappings. Returns the pieces whose end that was.
    pub fn unmapped(&mut self, address: u64, bytes: u64) -> Vec<Piece> {
        let end = address.saturating_add(bytes);
        let gone: Vec<u64> =
            self.by_address.extract_if(address..end, |_, _| true).map(|(_, (_, id))| id).collect();
        let mut ended = Vec::new();
        for id in gone {
            if let Some(living) = self.pieces.get_mut(&id) {
                living.mappings = living.mappings.saturating_sub(1);
            }
            ended.extend(self.end(id));
        }
        ended
    }

    /// The driver gave out `handle` for what is mapped at `address`: one more reference.
    pub fn retained(&mut self, address: u64, handle: u64) {
        let Some((start, (bytes, id))) = self.by_address.range(..=address).next_back() else { return };
        if address - start >= *bytes {
            return;
        }
        if let Some(living) = self.pieces.get_mut(id) {
            living.references += 1;
            self.by_handle.insert(handle, *id);
        }
    }

    fn end(&mut self, id: u64) -> Option<Piece> {
        let living = self.pieces.get(&id)?;
        if living.references > 0 || living.mappings > 0 {
            return None;
        }
        self.pieces.remove(&id).map(|living| living.piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Piece = Piece { device: 0, bytes: 4 };

    #[test]
    fn memory_released_while_it_is_mapped_lives_until_it_is_unmapped() {
        let mut physical = Physical::new();
        physical.made(1, PIECE);
        physical.mapped(0x1000, 4, 1);
        assert_eq!(physical.released(1), None);
        // The number is used again meanwhile.
        physical.made(1, Piece { device: 1, bytes: 8 });
        assert_eq!(physical.unmapped(0x1000, 4), [PIECE]);
        assert_eq!(physical.released(1), Some(Piece { device: 1, bytes: 8 }));
        assert_eq!(physical.released(1), None);
    }

    #[test]
    fn each_mapping_and_each_reference_keeps_it() {
        let mut physical = Physical::new();
        physical.made(1, PIECE);
        physical.mapped(0x1000, 4, 1);
        physical.mapped(0x2000, 4, 1);
        physical.retained(0x2003, 1);
        physical.retained(0x2004, 9);
        assert_eq!(physical.unmapped(0x1000, 0x2000), [], "both mappings in one call");
        assert_eq!(physical.released(1), None);
        assert_eq!(physical.released(1), Some(PIECE));
        assert_eq!(physical.released(9), None, "nothing was mapped there");
    }

    #[test]
    fn a_reference_taken_back_from_a_mapping_outlives_it() {
        let mut physical = Physical::new();
        physical.made(1, PIECE);
        physical.mapped(0x1000, 4, 1);
        assert_eq!(physical.released(1), None);
        physical.retained(0x1000, 2);
        assert_eq!(physical.unmapped(0x1000, 4), []);
        assert_eq!(physical.released(2), Some(PIECE));
    }
}
