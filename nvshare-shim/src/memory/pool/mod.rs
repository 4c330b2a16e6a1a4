//! One pool of stream-ordered memory: runs of chunks, and which parts of them are free, in whose order. Pure.
//!
//! As the driver has it (an H200's): a pool grows at its end by whole chunks, pieces lie in units of 512 bytes, and what was freed in
//! a stream can be had again there at once, elsewhere only when the work before the free is known to be finished. A chunk goes
//! back to the card as a whole, when nothing in it is taken and all that was freed in it is finished.

mod place;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use self::place::Place;

/// What a pool of a card that is not tiny grows by.
const LARGEST_CHUNK: u64 = 32 << 20;

/// What pools of a card with so much memory grow by.
pub fn chunk_of(total: u64, granularity: u64) -> u64 {
    (total / 16 / granularity * granularity).clamp(granularity, LARGEST_CHUNK)
}
/// What pieces begin and end on.
const UNIT: u64 = 512;

/// An order of work: a stream's, by its life and not by its handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The context whose synchronisation covers it; zero where none does.
    pub context: u64,
    /// The stream; zero for a default one.
    pub stream: u64,
    /// The thread, of a per-thread default stream.
    pub thread: u64,
}

/// A free part of the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    bytes: u64,
    /// Whose it is until the free with that number is known to be finished.
    after: Option<(Lane, u64)>,
}

impl Free {
    fn lane(&self) -> Option<Lane> {
        self.after.map(|(lane, _)| lane)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Memory is being put there.
    Coming,
    /// It came, in part, and was taken away again: it is not to be, and nobody else's before [`Pool::abandoned`] says so.
    Lost,
    Here,
    /// Its memory is being taken away.
    Leaving,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    state: State,
    /// Bytes of it that are taken.
    taken: u64,
}

/// A figure: now, and the most since that was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Now.
    pub now: u64,
    /// The most.
    pub most: u64,
}

impl Level {
    fn add(&mut self, bytes: u64) {
        self.now += bytes;
        self.most = self.most.max(self.now);
    }

    /// The most is what it is now.
    pub fn reset(&mut self) {
        self.most = self.now;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    /// What it grows by.
    pub chunk: u64,
    /// Reserved addresses: start and length, whole chunks.
    regions: BTreeMap<u64, u64>,
    chunks: BTreeMap<u64, Chunk>,
    /// Those that are there and of which nothing is taken.
    idle: BTreeSet<u64>,
    free: BTreeMap<u64, Free>,
    by_length: BTreeSet<(Option<Lane>, u64, u64)>,
    /// Bytes asked for and not freed.
    pub used: Level,
    /// Bytes with memory behind them.
    pub reserved: Level,
    /// How many pieces there are.
    pub pieces: u64,
}

/// What a piece of `bytes` takes.
pub const fn taken(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT).saturating_mul(UNIT)
}

impl Pool {
    /// One that has nothing yet.
    pub const fn new(chunk: u64) -> Pool {
        let level = Level { now: 0, most: 0 };
        Pool {
            chunk,
            regions: BTreeMap::new(),
            chunks: BTreeMap::new(),
            idle: BTreeSet::new(),
            free: BTreeMap::new(),
            by_length: BTreeSet::new(),
            used: level,
            reserved: level,
            pieces: 0,
        }
    }

    /// Takes a piece of what is there, for work in `lane`: of its own first.
    pub fn take(&mut self, bytes: u64, lane: Lane) -> Option<u64> {
        let length = taken(bytes);
        let best =
            |owner| self.by_length.range((owner, length, 0)..=(owner, u64::MAX, u64::MAX)).next().copied();
        let (_, _, start) = best(Some(lane)).or_else(|| best(None))?;
        self.carve(start, length);
        self.count(bytes);
        Some(start)
    }

    fn count(&mut self, bytes: u64) {
        self.used.add(bytes);
        self.pieces += 1;
    }

    /// Gives back a piece that was freed in `lane` with that number, or with nothing left to wait for.
    pub fn give(&mut self, start: u64, bytes: u64, after: Option<(Lane, u64)>) {
        let length = taken(bytes);
        self.used.now -= bytes;
        self.pieces -= 1;
        self.change_taken(start, length, |chunk, bytes| chunk.taken -= bytes);
        self.insert(start, length, after);
    }

    /// All that was freed in `lane` up to that number is finished.
    pub fn finished(&mut self, lane: Lane, number: u64) {
        self.pass_on(lane, number, None);
    }

    /// The lane `to` has waited for all that was freed in `from` up to that number.
    pub fn followed(&mut self, from: Lane, number: u64, to: (Lane, u64)) {
        self.pass_on(from, number, Some(to));
    }

    fn pass_on(&mut self, lane: Lane, number: u64, to: Option<(Lane, u64)>) {
        let of_it = self.by_length.range((Some(lane), 0, 0)..=(Some(lane), u64::MAX, u64::MAX));
        let all: Vec<u64> = of_it.map(|(_, _, start)| *start).collect();
        for start in all {
            // It may have become a part of another one before.
            let Some(free) = self.free.get(&start).copied() else { continue };
            if free.after.is_some_and(|(owner, freed)| owner == lane && freed <= number) {
                self.cut(start);
                self.insert(start, free.bytes, to);
            }
        }
    }

    /// The lanes that something was freed in which is not known to be finished.
    pub fn lanes(&self) -> BTreeSet<Lane> {
        let mut lanes = BTreeSet::new();
        let mut at = self.by_length.range((Some(Lane::default()), 0, 0)..).next();
        while let Some((Some(lane), _, _)) = at {
            lanes.insert(*lane);
            at = self.by_length.range((Some(*lane), u64::MAX, u64::MAX)..).next();
        }
        lanes
    }

    /// Addresses for chunks to come.
    pub fn add_region(&mut self, start: u64, bytes: u64) {
        debug_assert!(start.is_multiple_of(self.chunk) && bytes.is_multiple_of(self.chunk));
        self.regions.insert(start, bytes);
    }

    /// All regions, which hold nothing any more: start and length.
    pub fn into_regions(self) -> impl Iterator<Item = (u64, u64)> {
        debug_assert!(self.chunks.is_empty());
        self.regions.into_iter()
    }

    /// Whether any chunk is there, or coming or going.
    pub fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Whether nothing in the chunk that begins there is taken: its bytes matter to nobody.
    pub fn is_unused(&self, start: u64) -> bool {
        self.idle.contains(&start)
    }

    /// Chunks that go back to the card until no more than `keep` bytes are left, from the end. The memory of each is taken away, then
    /// [`Pool::gone`] is said of it.
    pub fn release(&mut self, keep: u64) -> Vec<u64> {
        let mut released = Vec::new();
        let candidates: Vec<u64> = self.idle.iter().rev().copied().collect();
        for start in candidates {
            if self.reserved.now <= keep {
                break;
            }
            if self.is_finished(start) {
                self.carve(start, self.chunk);
                self.chunks.insert(start, Chunk { state: State::Leaving, taken: 0 });
                self.reserved.now -= self.chunk;
                released.push(start);
            }
        }
        released
    }

    /// How much would be left if all went that can.
    pub fn least(&self) -> u64 {
        let can_go = self.idle.iter().filter(|start| self.is_finished(**start)).count() as u64;
        self.reserved.now - can_go * self.chunk
    }

    /// Nothing is behind the chunk that begins there any more. One that was coming is still that place's for which it came.
    pub fn gone(&mut self, start: u64) -> bool {
        match self.chunks.get_mut(&start) {
            Some(chunk) if chunk.state == State::Coming => chunk.state = State::Lost,
            Some(_) => drop(self.chunks.remove(&start)),
            None => return false,
        }
        true
    }

    /// Whether all that is free in an unused chunk is anybody's.
    fn is_finished(&self, chunk: u64) -> bool {
        let mut at = chunk;
        while at < chunk + self.chunk {
            match self.free.range(..=at).next_back() {
                Some((start, free)) if free.after.is_none() && at < start + free.bytes => {
                    at = start + free.bytes;
                }
                _ => return false,
            }
        }
        true
    }

    /// Takes a range out of what is free; what is free around it stays so.
    fn carve(&mut self, start: u64, length: u64) {
        let (mut at, end) = (start, start + length);
        while at < end {
            let within = self.free.range(..=at).next_back().map(|(begin, free)| (*begin, *free));
            let Some((begin, free)) = within.filter(|(begin, free)| at < begin + free.bytes) else {
                debug_assert!(false, "taken twice");
                break;
            };
            self.cut(begin);
            if begin < at {
                self.place(begin, Free { bytes: at - begin, ..free });
            }
            let stop = begin + free.bytes;
            if stop > end {
                self.place(end, Free { bytes: stop - end, ..free });
            }
            at = stop;
        }
        self.change_taken(start, length, |chunk, bytes| chunk.taken += bytes);
    }

    fn change_taken(&mut self, start: u64, length: u64, change: impl Fn(&mut Chunk, u64)) {
        let mut at = start;
        while at < start + length {
            let base = at / self.chunk * self.chunk;
            let stop = (base + self.chunk).min(start + length);
            if let Some(chunk) = self.chunks.get_mut(&base) {
                change(chunk, stop - at);
            }
            self.look_at(base);
            at = stop;
        }
    }

    /// A chunk may be idle now, or not any more.
    fn look_at(&mut self, start: u64) {
        match self.chunks.get(&start) {
            Some(Chunk { state: State::Here, taken: 0 }) => self.idle.insert(start),
            _ => self.idle.remove(&start),
        };
    }

    /// Puts a free range there, joined with its neighbours of the same owner.
    fn insert(&mut self, mut start: u64, mut bytes: u64, mut after: Option<(Lane, u64)>) {
        let owner = after.map(|(lane, _)| lane);
        let before = self.free.range(..start).next_back().map(|(start, free)| (*start, *free));
        if let Some((begin, free)) =
            before.filter(|(begin, free)| begin + free.bytes == start && free.lane() == owner)
            && !self.regions.contains_key(&start)
        {
            self.cut(begin);
            (start, bytes, after) = (begin, bytes + free.bytes, after.max(free.after));
        }
        let end = start + bytes;
        if let Some(free) = self.free.get(&end).copied().filter(|free| free.lane() == owner)
            && !self.regions.contains_key(&end)
        {
            self.cut(end);
            (bytes, after) = (bytes + free.bytes, after.max(free.after));
        }
        self.place(start, Free { bytes, after });
    }

    fn place(&mut self, start: u64, free: Free) {
        self.by_length.insert((free.lane(), free.bytes, start));
        self.free.insert(start, free);
    }

    fn cut(&mut self, start: u64) {
        if let Some(free) = self.free.remove(&start) {
            self.by_length.remove(&(free.lane(), free.bytes, start));
        }
    }
}
