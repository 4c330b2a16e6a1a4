//! Where a pool's pieces are: in chunks of 32 MiB that follow one another, each of which goes back to the card when nothing is in
//! it. A piece may lie across chunks, and what the end of the last one has free is used before another one is taken (seen on an
//! H200). The pieces of a pool that can be exported each lie in one chunk, which is as large as the piece needs: that is what
//! others open.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunk::{Chunk, Stretch};
use super::freed::{Freed, Reuse};
use super::{GRANULARITY, piece};
use crate::completion::Completion;
use crate::device::card;
use crate::flight;

/// Pieces start at multiples of this.
const ALIGNMENT: u64 = 512;
/// Chunks are of this size, unless the card is small, and stretches begin at multiples of it.
const CHUNK: u64 = 32 << 20;

/// Memory that is no piece.
#[derive(Clone)]
struct Part {
    bytes: u64,
    /// It was freed in a stream, and the host did not wait for that.
    freed: Option<Freed>,
}

/// Who asks for a piece.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    pub(super) stream: u64,
    pub(super) reuse: Reuse,
}

/// Why there are no more chunks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The pool has as many as it may.
    Limit,
    /// The card has no room.
    Card,
}

/// A piece that was handed out.
pub(super) struct Taken {
    pub(super) start: u64,
    /// What the asker's stream must wait for before it uses the piece.
    pub(super) waits: Vec<Arc<Completion>>,
}

/// The memory of a pool.
pub(super) struct Blocks {
    device: usize,
    /// Each piece lies in one chunk.
    apart: bool,
    /// So many bytes of chunks at most.
    limit: u64,
    stretches: Vec<Stretch>,
    chunks: BTreeMap<u64, Chunk>,
    /// What of the chunks is no piece, by first address. Parts that nobody has to wait for do not touch.
    parts: BTreeMap<u64, Part>,
    /// Bytes of pieces, as they were asked for, now and at most.
    pub(super) used: (u64, u64),
    /// Bytes of chunks, now and at most.
    pub(super) reserved: (u64, u64),
}

fn raise((now, high): &mut (u64, u64), bytes: u64) {
    *now += bytes;
    *high = (*high).max(*now);
}

fn whole(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

fn chunk_bytes() -> u64 {
    (card().config().card_bytes / 16 / GRANULARITY * GRANULARITY).clamp(GRANULARITY, CHUNK)
}

impl Blocks {
    /// None so far; `limit` 0 is none.
    pub(super) fn new(device: usize, apart: bool, limit: u64) -> Blocks {
        Blocks {
            device,
            apart,
            limit: if limit == 0 { u64::MAX } else { limit },
            stretches: Vec::new(),
            chunks: BTreeMap::new(),
            parts: BTreeMap::new(),
            used: (0, 0),
            reserved: (0, 0),
        }
    }

    /// A piece of what is there and the asker may have, where `waiting` of what it has to wait for too.
    pub(super) fn take(&mut self, bytes: u64, asker: Asker, waiting: bool) -> Option<Taken> {
        let may = |freed: &Freed| freed.is_for(asker.stream, asker.reuse);
        let start = first_fit(self.spans(|freed| waiting || may(freed), false), whole(bytes))?;
        raise(&mut self.used, bytes);
        let mut waits = Vec::new();
        for (first, part) in self.cut(start, whole(bytes)) {
            match part.freed {
                Some(freed) if may(&freed) => {}
                Some(freed) => waits.push(freed.done),
                // `cuMemFree` waits for nobody, so whoever used it may not be done.
                None => check_unused(first, part.bytes, asker.stream),
            }
        }
        Some(Taken { start, waits })
    }

    /// Takes chunks from the card with which a piece of this size fits.
    pub(super) fn grow(&mut self, bytes: u64, asker: Asker) -> Result<(), Refused> {
        let wanted = whole(bytes);
        let may = |freed: &Freed| freed.is_for(asker.stream, asker.reuse);
        let start = match first_fit(self.spans(may, true), wanted) {
            Some(start) => start,
            None => self.stretch(wanted)?,
        };
        let missing = self.missing(start, wanted);
        let more: u64 = missing.iter().map(|(_, bytes)| bytes).sum();
        if self.reserved.0.saturating_add(more) > self.limit {
            return Err(Refused::Limit);
        }
        let stretch = self.stretches.iter().find(|stretch| (stretch.start..stretch.end()).contains(&start));
        let stretch = stretch.ok_or(Refused::Card)?;
        let mut taken = Vec::new();
        for (start, bytes) in missing {
            if let Ok(chunk) = stretch.back(self.device, start, bytes) {
                taken.push(chunk);
            } else {
                taken.into_iter().for_each(Chunk::take_away);
                return Err(Refused::Card);
            }
        }
        raise(&mut self.reserved, more);
        for chunk in taken {
            let (start, bytes) = (chunk.start, chunk.bytes);
            self.chunks.insert(start, chunk);
            self.put(start, Part { bytes, freed: None });
        }
        Ok(())
    }

    /// Reserves addresses for pieces of this size and many others: where they begin.
    fn stretch(&mut self, wanted: u64) -> Result<u64, Refused> {
        let bytes = (2 * card().config().card_bytes).max(wanted).checked_next_multiple_of(chunk_bytes());
        let stretch = bytes.and_then(|bytes| Stretch::reserve(bytes, CHUNK)).ok_or(Refused::Card)?;
        let start = stretch.start;
        self.stretches.push(stretch);
        Ok(start)
    }

    /// The chunks that are missing for a piece there: first address, size.
    fn missing(&self, start: u64, bytes: u64) -> Vec<(u64, u64)> {
        let chunk = chunk_bytes();
        if self.apart {
            return vec![(start, bytes.next_multiple_of(chunk))];
        }
        let bare = self.bare().into_iter().flat_map(|(first, length)| {
            (first..first + length).step_by(chunk as usize).map(|start| (start, chunk))
        });
        bare.filter(|(first, length)| *first < start + bytes && start < first + length).collect()
    }

    /// Where in the stretches there are no chunks.
    fn bare(&self) -> Vec<(u64, u64)> {
        let mut bare = Vec::new();
        for stretch in &self.stretches {
            let mut at = stretch.start;
            for chunk in self.chunks.range(stretch.start..stretch.end()).map(|(_, chunk)| chunk) {
                bare.push((at, chunk.start - at));
                at = chunk.end();
            }
            bare.push((at, stretch.end() - at));
        }
        bare.retain(|(_, bytes)| *bytes > 0);
        bare
    }

    /// What a piece may lie in, in the order of addresses: parts that are usable, and where there are no chunks if `bare`.
    fn spans(&self, usable: impl Fn(&Freed) -> bool, bare: bool) -> Vec<(u64, u64)> {
        let usable = self.parts.iter().filter(|(_, part)| part.freed.as_ref().is_none_or(&usable));
        let mut parts: Vec<(u64, u64)> = usable.map(|(start, part)| (*start, part.bytes)).collect();
        if bare {
            parts.extend(self.bare());
            parts.sort_unstable();
        }
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for (start, bytes) in parts {
            match spans.last_mut() {
                Some((first, length)) if *first + *length == start && self.joins(start) => *length += bytes,
                _ => spans.push((start, bytes)),
            }
        }
        spans
    }

    /// Whether one piece may lie on both sides of an address.
    fn joins(&self, address: u64) -> bool {
        !self.apart || self.chunk(address).is_some_and(|chunk| chunk.start < address)
    }

    /// Takes a range out of the parts; in it there are only such.
    fn cut(&mut self, start: u64, bytes: u64) -> Vec<(u64, Part)> {
        let end = start + bytes;
        let mut cut = Vec::new();
        while let Some((&first, part)) = self.parts.range(..end).next_back()
            && first + part.bytes > start
        {
            let part = part.clone();
            let over = first + part.bytes;
            let sized = |bytes| Part { bytes, ..part.clone() };
            self.parts.remove(&first);
            if first < start {
                self.parts.insert(first, sized(start - first));
            }
            if over > end {
                self.parts.insert(end, sized(over - end));
            }
            let (first, over) = (first.max(start), over.min(end));
            cut.push((first, sized(over - first)));
        }
        cut
    }

    /// Puts a part there, where none is.
    fn put(&mut self, mut start: u64, mut part: Part) {
        let is_spare = |part: &Part| part.freed.is_none();
        if is_spare(&part) {
            if let Some((&before, other)) = self.parts.range(..start).next_back()
                && before + other.bytes == start
                && is_spare(other)
                && self.joins(start)
            {
                part.bytes += other.bytes;
                start = before;
            }
            let end = start + part.bytes;
            if self.parts.get(&end).is_some_and(is_spare) && self.joins(end) {
                part.bytes += self.parts.remove(&end).map_or(0, |after| after.bytes);
            }
        }
        self.parts.insert(start, part);
    }

    /// A piece is none any more; `freed` where the host did not wait for it.
    pub(super) fn give_back(&mut self, start: u64, bytes: u64, freed: Option<Freed>) {
        self.used.0 -= bytes;
        self.put(start, Part { bytes: whole(bytes), freed });
    }

    /// Frees that the host did not wait for.
    pub(super) fn freed(&mut self) -> impl Iterator<Item = &mut Freed> {
        self.parts.values_mut().filter_map(|part| part.freed.as_mut())
    }

    /// The host has waited for some of them.
    pub(super) fn settle(&mut self, is_over: impl Fn(&Freed) -> bool) {
        let over = |part: &Part| part.freed.as_ref().is_some_and(&is_over);
        let over: Vec<u64> =
            self.parts.iter().filter(|(_, part)| over(part)).map(|(start, _)| *start).collect();
        for start in over {
            if let Some(Part { bytes, .. }) = self.parts.remove(&start) {
                self.put(start, Part { bytes, freed: None });
            }
        }
    }

    /// The chunk around an address.
    pub(super) fn chunk(&self, address: u64) -> Option<&Chunk> {
        let (_, chunk) = self.chunks.range(..=address).next_back()?;
        (address < chunk.end()).then_some(chunk)
    }

    /// Gives chunks with nothing in them back to the card, the last ones first, until no more than `keep` bytes are held. What
    /// work uses that nobody waited for stays.
    pub(super) fn trim(&mut self, keep: u64) {
        let all: Vec<u64> = self.chunks.keys().rev().copied().collect();
        for start in all {
            if self.reserved.0 <= keep {
                return;
            }
            if self.is_empty(start)
                && let Some(chunk) = self.chunks.remove(&start)
            {
                self.cut(start, chunk.bytes);
                self.reserved.0 -= chunk.bytes;
                chunk.take_away();
            }
        }
    }

    fn is_empty(&self, chunk: u64) -> bool {
        let Some(chunk) = self.chunks.get(&chunk) else { return false };
        let part = self.parts.range(..=chunk.start).next_back();
        part.is_some_and(|(first, part)| part.freed.is_none() && first + part.bytes >= chunk.end())
            && flight::in_flight(chunk.start, chunk.bytes, u64::MAX).is_none()
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for chunk in std::mem::take(&mut self.chunks).into_values() {
            flight::stop_touching(chunk.start, chunk.bytes);
            chunk.take_away();
        }
    }
}

fn first_fit(spans: Vec<(u64, u64)>, wanted: u64) -> Option<u64> {
    spans.into_iter().find(|(_, bytes)| *bytes >= wanted).map(|(start, _)| start)
}

/// A violation if another stream's work may still touch what this one gets.
fn check_unused(start: u64, bytes: u64, stream: u64) {
    if let Some(work) = flight::in_flight_elsewhere(start, bytes, stream) {
        let what = piece(start, bytes);
        crate::strict::violation(&format!("{what} is stream {stream}'s from here on: {work} still uses it"));
        flight::stop_touching(start, bytes);
    }
}
