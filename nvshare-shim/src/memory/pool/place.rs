//! Where a piece goes that no free part holds by itself: over neighbouring parts, and over chunks to come.

use std::collections::VecDeque;

use super::{Chunk, Lane, Pool, State, taken};

/// Where a piece is going to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its first byte.
    pub start: u64,
    bytes: u64,
    /// The chunks that it needs and that are not there.
    pub chunks: Vec<u64>,
}

/// What follows in a region.
#[derive(Clone, Copy)]
enum Next {
    /// What the piece may take.
    Usable,
    /// Chunks without memory.
    Absent,
    /// What it may not.
    Barred,
}

impl Pool {
    /// Where a piece for work in `lane` fits with the fewest chunks more, the lowest of these. `None`: in no region.
    pub fn find(&self, bytes: u64, lane: Lane) -> Option<Place> {
        let length = taken(bytes);
        let mut best: Option<(u64, u64)> = None;
        'regions: for (&region, &size) in &self.regions {
            // Where the run of what can be taken begins that the walk is in, and where a piece could begin in it.
            let mut starts: VecDeque<u64> = VecDeque::new();
            let (mut at, end) = (region, region + size);
            while at < end {
                let (next, stop) = self.next(at, end, lane);
                match next {
                    Next::Barred => starts.clear(),
                    Next::Usable | Next::Absent => starts.push_back(at),
                }
                // The lowest is the first that fits.
                while let Some(start) = starts.pop_front_if(|start| *start + length <= stop) {
                    let absent = self.absent(start, length).count() as u64;
                    if best.is_none_or(|best| (absent, start) < best) {
                        best = Some((absent, start));
                    }
                    if absent == 0 {
                        break 'regions;
                    }
                }
                at = stop;
            }
        }
        let (_, start) = best?;
        Some(Place { start, bytes, chunks: self.absent(start, length).collect() })
    }

    /// What is at `at`, and where it ends.
    fn next(&self, at: u64, end: u64, lane: Lane) -> (Next, u64) {
        if let Some(free) = self.free.get(&at) {
            let usable = free.after.is_none_or(|(owner, _)| owner == lane);
            return (if usable { Next::Usable } else { Next::Barred }, (at + free.bytes).min(end));
        }
        if at.is_multiple_of(self.chunk) && !self.chunks.contains_key(&at) {
            let stop = self.chunks.range(at..).next().map_or(end, |(start, _)| *start);
            return (Next::Absent, stop.min(end));
        }
        let free = self.free.range(at..).next().map_or(end, |(start, _)| *start);
        (Next::Barred, free.min(at / self.chunk * self.chunk + self.chunk).min(end))
    }

    /// The chunks that a range needs and that are not there.
    fn absent(&self, start: u64, length: u64) -> impl Iterator<Item = u64> + '_ {
        let chunks = (start / self.chunk * self.chunk..start + length).step_by(self.chunk as usize);
        chunks.filter(|chunk| !self.chunks.contains_key(chunk))
    }

    /// Takes a place that was found just now. Its chunks are coming: [`Pool::filled`] says that they are there,
    /// [`Pool::abandoned`] that they will not be.
    pub fn begin(&mut self, place: &Place) {
        for (chunk, start, length) in self.parts(place) {
            if place.chunks.contains(&chunk) {
                self.chunks.insert(chunk, Chunk { state: State::Coming, taken: length });
            } else {
                self.carve(start, length);
            }
        }
        self.count(place.bytes);
    }

    /// All chunks of a place are there: the piece is.
    pub fn filled(&mut self, place: &Place) {
        let end = place.start + taken(place.bytes);
        for &chunk in &place.chunks {
            self.arrived(chunk);
            let rests = [
                (chunk, place.start.clamp(chunk, chunk + self.chunk)),
                (end.clamp(chunk, chunk + self.chunk), chunk + self.chunk),
            ];
            for (start, stop) in rests.into_iter().filter(|(start, stop)| start < stop) {
                self.insert(start, stop - start, None);
            }
        }
    }

    /// The piece is not to be: what it took of chunks that were there is free again, in the order of `after`, and so are those of
    /// its chunks that came after all, the first `came`. Of the others it says which `are_leaving`; the rest never had memory.
    pub fn abandoned(
        &mut self,
        place: &Place,
        after: Option<(Lane, u64)>,
        came: usize,
        is_leaving: impl Fn(u64) -> bool,
    ) {
        for (_, start, length) in self.parts(place).filter(|(chunk, ..)| !place.chunks.contains(chunk)) {
            self.change_taken(start, length, |chunk, bytes| chunk.taken -= bytes);
            self.insert(start, length, after);
        }
        for (index, &chunk) in place.chunks.iter().enumerate() {
            if index < came {
                self.chunks.insert(chunk, Chunk { state: State::Coming, taken: 0 });
                self.arrived(chunk);
                self.insert(chunk, self.chunk, None);
            } else if self.is_coming(chunk) && is_leaving(chunk) {
                self.chunks.insert(chunk, Chunk { state: State::Leaving, taken: 0 });
            } else {
                self.chunks.remove(&chunk);
            }
        }
        self.used.now -= place.bytes;
        self.pieces -= 1;
    }

    fn is_coming(&self, chunk: u64) -> bool {
        self.chunks.get(&chunk).is_some_and(|chunk| chunk.state == State::Coming)
    }

    fn arrived(&mut self, chunk: u64) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.state = State::Here;
        }
        self.look_at(chunk);
        self.reserved.add(self.chunk);
    }

    /// The parts of a place, each with its chunk, its start and its length.
    fn parts(&self, place: &Place) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let (start, end, size) = (place.start, place.start + taken(place.bytes), self.chunk);
        (start / size * size..end).step_by(size as usize).map(move |chunk| {
            let (from, to) = (chunk.max(start), (chunk + size).min(end));
            (chunk, from, to - from)
        })
    }
}
