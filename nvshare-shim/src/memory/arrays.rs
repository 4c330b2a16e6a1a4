//! Arrays whose memory the engine moves: their form as bytes in a row, and the handles that the application knows them by. What
//! lies behind one is a span of its device's [`Space`](super::space::Space). Pure.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What the application knows an array by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `CUarray`
    Array(u64),
    /// `CUmipmappedArray`
    Mipmapped(u64),
}

/// An array of one level, as rows of bytes in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its `CUarray`.
    pub array: u64,
    /// Bytes of a row.
    pub row: u64,
    /// Rows of a slice.
    pub rows: u64,
    /// Slices: depth, layers, faces.
    pub slices: u64,
}

/// A box of an array, and where its bytes lie among those of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Box3 {
    /// Its `CUarray`.
    pub array: u64,
    /// Where it begins: bytes of the row, row, slice.
    pub at: [u64; 3],
    /// Its extents, the same.
    pub extents: [u64; 3],
    /// Bytes of the array's rows, and rows of its slices.
    pub pitch: [u64; 2],
    /// Where it begins in the image.
    pub offset: u64,
}

/// All bytes of an array in a row, level after level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image(pub Vec<Part>);

impl Part {
    const fn bytes(&self) -> u64 {
        self.row.saturating_mul(self.rows).saturating_mul(self.slices)
    }

    /// The boxes of its bytes `at..end`: the end of a row, rows, slices, rows, the beginning of a row.
    fn cut(&self, mut at: u64, end: u64, base: u64, boxes: &mut Vec<Box3>) {
        let slice = self.row * self.rows;
        while at < end {
            let (x, y, z, left) = (at % self.row, at / self.row % self.rows, at / slice, end - at);
            let extents = if x > 0 || left < self.row {
                [left.min(self.row - x), 1, 1]
            } else if y > 0 || left < slice {
                [self.row, (left / self.row).min(self.rows - y), 1]
            } else {
                [self.row, self.rows, left / slice]
            };
            let pitch = [self.row, self.rows];
            boxes.push(Box3 { array: self.array, at: [x, y, z], extents, pitch, offset: base + at });
            at += extents.iter().product::<u64>();
        }
    }
}

impl Image {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, part| sum.saturating_add(part.bytes()))
    }

    /// What of the arrays the bytes from `from` on are; none beyond their end.
    pub fn boxes(&self, from: u64, bytes: u64) -> Vec<Box3> {
        let (end, mut base, mut boxes) = (from.saturating_add(bytes), 0, Vec::new());
        for part in &self.0 {
            let length = part.bytes();
            let (first, last) = (from.clamp(base, base + length), end.clamp(base, base + length));
            part.cut(first - base, last - base, base, &mut boxes);
            base += length;
        }
        boxes
    }
}

/// An array that the engine moves.
#[derive(Clone, Debug)]
pub struct Placed {
    /// What the application knows it by.
    pub name: Name,
    /// A number that no other has.
    pub number: u64,
    /// Its device: the index in `device::all`.
    pub device: usize,
    /// The context that it belongs to.
    pub context: usize,
    /// The stream in which memory is put behind it, of that context.
    pub stream: usize,
    /// The start of its span.
    pub span: u64,
    /// Its bytes.
    pub image: Arc<Image>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Arrays {
    by_number: BTreeMap<u64, Placed>,
    names: BTreeMap<Name, u64>,
}

impl Arrays {
    /// One is there.
    pub fn made(&mut self, placed: Placed) {
        self.names.insert(placed.name, placed.number);
        for part in &placed.image.0 {
            self.names.insert(Name::Array(part.array), placed.number);
        }
        self.by_number.insert(placed.number, placed);
    }

    /// The application was given a level of it.
    pub fn level(&mut self, of: Name, level: u64) {
        if let Some(number) = self.names.get(&of).copied() {
            self.names.insert(Name::Array(level), number);
        }
    }

    /// Whether it, or what it is a level of, is moved.
    pub fn has(&self, name: Name) -> bool {
        self.names.contains_key(&name)
    }

    /// The one with that number.
    pub fn placed(&self, number: u64) -> Option<&Placed> {
        self.by_number.get(&number)
    }

    /// Its end begins: nobody else ends it. It is there until it is forgotten.
    pub fn end(&mut self, name: Name) -> Option<Placed> {
        let placed = self.by_number.get(self.names.get(&name)?)?;
        // A level is no array of its own.
        if placed.name != name {
            return None;
        }
        self.names.remove(&name);
        Some(placed.clone())
    }

    /// It did not end after all.
    pub fn goes_on(&mut self, placed: &Placed) {
        if self.by_number.contains_key(&placed.number) {
            self.names.insert(placed.name, placed.number);
        }
    }

    /// It is gone.
    pub fn forget(&mut self, number: u64) -> Option<Placed> {
        self.names.retain(|_, known| *known != number);
        self.by_number.remove(&number)
    }

    /// Those of a context that is gone.
    pub fn of_context(&self, context: usize) -> Vec<u64> {
        let of = self.by_number.values().filter(|placed| placed.context == context);
        of.map(|placed| placed.number).collect()
    }
}

static ARRAYS: RwLock<Arrays> = RwLock::new(Arrays { by_number: BTreeMap::new(), names: BTreeMap::new() });
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether there are any: nearly always there are none.
#[inline]
pub fn are_there() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// To look something up.
pub fn look() -> RwLockReadGuard<'static, Arrays> {
    ARRAYS.read().unwrap_or_else(PoisonError::into_inner)
}

/// To change something; no driver call is made meanwhile.
pub fn change<T>(change: impl FnOnce(&mut Arrays) -> T) -> T {
    let mut arrays: RwLockWriteGuard<'_, Arrays> = ARRAYS.write().unwrap_or_else(PoisonError::into_inner);
    let answer = change(&mut arrays);
    COUNT.store(arrays.by_number.len(), Ordering::Relaxed);
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(array: u64, row: u64, rows: u64, slices: u64) -> Part {
        Part { array, row, rows, slices }
    }

    #[test]
    fn a_range_is_the_end_of_a_row_rows_slices_rows_and_the_beginning_of_one() {
        let image = Image(vec![part(1, 10, 4, 5)]);
        let boxes = image.boxes(15, 120);
        let cut: Vec<_> = boxes.iter().map(|cut| (cut.at, cut.extents, cut.offset)).collect();
        assert_eq!(
            cut,
            [
                ([5, 1, 0], [5, 1, 1], 15),
                ([0, 2, 0], [10, 2, 1], 20),
                ([0, 0, 1], [10, 4, 2], 40),
                ([0, 0, 3], [10, 1, 1], 120),
                ([0, 1, 3], [5, 1, 1], 130),
            ]
        );
        assert_eq!(image.boxes(200, 100), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn blocks_cover_every_byte_of_every_level_once_and_in_order(
            parts in proptest::collection::vec((1_u64..9, 1_u64..6, 1_u64..5), 1..4),
            block in 1_u64..50,
        ) {
            let parts = parts.into_iter().enumerate();
            let image = Image(parts.map(|(array, (row, rows, slices))| part(array as u64, row, rows, slices)).collect());
            let mut next = 0;
            for from in (0..image.bytes() + block).step_by(block as usize) {
                for cut in image.boxes(from, block) {
                    prop_assert_eq!(cut.offset, next);
                    let of = image.0[cut.array as usize];
                    let ends = [cut.at[0] + cut.extents[0], cut.at[1] + cut.extents[1], cut.at[2] + cut.extents[2]];
                    prop_assert!(ends[0] <= of.row && ends[1] <= of.rows && ends[2] <= of.slices);
                    next += cut.extents.iter().product::<u64>();
                    prop_assert!(next <= from + block);
                }
            }
            prop_assert_eq!(next, image.bytes());
        }
    }

    #[test]
    fn an_array_is_known_by_its_levels_and_ends_by_its_own_name_once() {
        let mut arrays = Arrays::default();
        let image = Arc::new(Image(vec![part(7, 1, 1, 1)]));
        let name = Name::Mipmapped(7);
        arrays.made(Placed { name, number: 1, device: 0, context: 5, stream: 0, span: 0, image });
        arrays.level(name, 9);
        assert!(arrays.has(name) && arrays.has(Name::Array(7)) && arrays.has(Name::Array(9)));
        assert!(arrays.end(Name::Array(9)).is_none());
        let ending = arrays.end(name).expect("it is there");
        assert!(arrays.end(name).is_none());
        arrays.goes_on(&ending);
        assert!(arrays.end(name).is_some() && arrays.end(name).is_none());
        assert_eq!(arrays.of_context(5), [1]);
        assert!(arrays.forget(1).is_some() && !arrays.has(Name::Array(9)));
    }
}
