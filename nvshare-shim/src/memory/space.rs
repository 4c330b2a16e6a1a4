//! What a process holds on one device: spans of addresses, the extents behind them, and the accounts. Pure: the driver
//! calls that make it true are made by `super` and by `crate::swap`.
//!
//! The accounts change only here and in [`moves`], together with an extent's presence, so that S1 (resident + unswappable <=
//! granted) is checked wherever it could break.

mod moves;
mod owed;
mod stays;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use self::stays::Lent;
use super::extent::{Extent, ExtentId, Presence, Slot, cut};
use super::virtuals::Behind;

/// Addresses in one piece: a large allocation, a slab of small ones, or what is behind a handle that the application maps itself.
#[derive(Debug)]
pub struct Span {
    /// Its length.
    pub bytes: u64,
    /// Its extents, in order of address.
    pub extents: Vec<ExtentId>,
    /// The context whose end is its end.
    pub context: usize,
    /// The application's handle.
    pub behind: Option<Behind>,
    /// Whose its addresses are.
    addresses: Addresses,
    /// Its bytes that are not (settled) resident: questions about it do not walk its extents.
    missing: u64,
    /// What is missing of it keeps no gate shut: see [`Space::fix`].
    fixed: bool,
    /// Its bytes that stay, whoever holds them.
    kept: u64,
    /// Freed while the engine was at work on one of its extents, which takes it apart when it is done.
    pub doomed: bool,
    /// The allocation is over: what is missing is anybody's. Until then only its thread puts memory behind it, for it answers
    /// whether there was enough.
    made: bool,
}

/// Whose the addresses of a span are, when it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// Its own: they go with it.
    #[default]
    Own,
    /// The engine's, for what the application mapped itself elsewhere.
    Home,
    /// A pool's, of which it was a chunk.
    Pool,
}

/// What is left of a span that is gone: to be given back to the driver and to the arenas.
#[derive(Debug, Default)]
pub struct Remains {
    /// Where it was.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// Whose the addresses are.
    pub addresses: Addresses,
    /// What has memory behind it.
    pub pieces: Vec<Piece>,
    /// Its shadows.
    pub slots: Vec<Slot>,
}

/// A part of remains that has memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// Its memory.
    pub handle: u64,
    /// Whether that is mapped there.
    pub mapped: bool,
}

/// The accounts, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// What may be resident; nothing limits it while `unlimited`.
    pub granted: u64,
    /// No agent: the device alone decides.
    pub unlimited: bool,
    /// Extents with memory behind them, arriving and leaving ones included.
    pub resident: u64,
    /// Extents that are not (settled) resident: while there are any, the gate is closed.
    pub missing: u64,
    /// All extents.
    pub total: u64,
    /// Passed through, cannot be moved.
    pub unswappable: u64,
    /// The most `total + unswappable` may become.
    pub limit: Option<u64>,
}

impl Accounts {
    /// How much more may become resident.
    pub const fn slack(&self) -> u64 {
        if self.unlimited { u64::MAX } else { self.granted.saturating_sub(self.resident + self.unswappable) }
    }

    /// All that must be resident for the client to run.
    pub const fn needed(&self) -> u64 {
        self.total + self.unswappable
    }

    /// How much more it may come to need.
    pub fn left(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.needed()))
    }
}

/// One device's spans, extents and accounts.
#[derive(Debug, Default)]
pub struct Space {
    extents: Vec<Option<Extent>>,
    vacant: Vec<u32>,
    spans: BTreeMap<u64, Span>,
    accounts: Accounts,
    kept: u64,
    /// How many extents there were: each has a number of its own.
    placed: u64,
    /// See [`Space::owe`].
    owed: u64,
    /// Spans that are gone and perhaps mapped still: start and length.
    parting: BTreeMap<u64, u64>,
}

impl Space {
    /// Nothing held, nothing granted, nothing limited.
    pub fn new() -> Space {
        Space { accounts: Accounts { unlimited: true, ..Accounts::default() }, ..Space::default() }
    }

    /// The accounts.
    pub const fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Changes what is granted, limited or passed through.
    pub fn set_terms(&mut self, change: impl FnOnce(&mut Accounts)) {
        let before = self.accounts;
        change(&mut self.accounts);
        let after = &self.accounts;
        debug_assert!(
            (before.resident, before.missing, before.total) == (after.resident, after.missing, after.total)
        );
    }

    /// Takes what is unused out of the grant, at most `most` bytes, and says how much that was.
    pub fn give_up_slack(&mut self, most: u64) -> u64 {
        if self.accounts.unlimited {
            return 0;
        }
        let slack = self.accounts.slack().min(most);
        self.accounts.granted -= slack;
        slack
    }

    /// Records a span of `bytes` at `start`, cut into absent extents of at most `largest`.
    pub fn add_span(&mut self, start: u64, bytes: u64, largest: u64, context: usize) -> Vec<ExtentId> {
        self.add(start, bytes, largest, context, None, Addresses::Own)
    }

    /// As [`Space::add_span`], for a chunk of a pool. No context owns it.
    pub fn add_chunk(&mut self, start: u64, bytes: u64, largest: u64) -> Vec<ExtentId> {
        self.add(start, bytes, largest, 0, None, Addresses::Pool)
    }

    /// As [`Space::add_span`], for a handle of the application's; it is one piece where it may be exported. No context owns it.
    /// The same for what is behind an array.
    pub fn add_behind(&mut self, start: u64, bytes: u64, largest: u64, behind: Behind) -> Vec<ExtentId> {
        let largest = if behind.asked.is_whole() { bytes } else { largest };
        self.add(start, bytes, largest, 0, Some(behind), Addresses::Home)
    }

    fn add(
        &mut self,
        start: u64,
        bytes: u64,
        largest: u64,
        context: usize,
        behind: Option<Behind>,
        addresses: Addresses,
    ) -> Vec<ExtentId> {
        let extents: Vec<ExtentId> = cut(bytes, largest)
            .map(|(offset, length)| self.place(Extent::new(start + offset, length, start)))
            .collect();
        self.accounts.total += bytes;
        self.accounts.missing += bytes;
        let before = self.spans.insert(
            start,
            Span {
                bytes,
                extents: extents.clone(),
                context,
                behind,
                addresses,
                missing: bytes,
                fixed: false,
                kept: 0,
                doomed: false,
                made: false,
            },
        );
        debug_assert!(before.is_none(), "S5: an address is given out twice");
        extents
    }

    /// The allocation of a span is over.
    pub fn span_is_made(&mut self, start: u64) {
        if let Some(span) = self.spans.get_mut(&start) {
            span.made = true;
        }
    }

    /// Whether what is missing of an extent's span shall be brought in by whoever finds it.
    pub fn is_anybodys(&self, extent: &Extent) -> bool {
        self.spans.get(&extent.span).is_some_and(|span| span.made && !span.doomed)
    }

    /// Whether an address lies in a span, allocated or not, or in one that is being taken apart.
    pub fn covers(&self, at: u64) -> bool {
        let span = self.spans.range(..=at).next_back();
        let parting = self.parting.range(..=at).next_back();
        span.is_some_and(|(start, span)| at - start < span.bytes)
            || parting.is_some_and(|(start, bytes)| at - start < *bytes)
    }

    /// Nothing is mapped any more where the remains of a span were.
    pub fn parted(&mut self, start: u64) {
        self.parting.remove(&start);
    }

    /// Takes a span out of the records, or, where the engine is at work on it, only marks it; then [`Space::reap`] takes
    /// it out later. The remains stay in the account of what is resident until [`Space::forget`].
    pub fn remove_span(&mut self, start: u64) -> Option<Remains> {
        let span = self.spans.get_mut(&start)?;
        span.doomed = true;
        self.reap(start)
    }

    /// Takes a doomed span out once none of its extents is busy.
    pub fn reap(&mut self, start: u64) -> Option<Remains> {
        let span = self.spans.get(&start).filter(|span| span.doomed)?;
        if span.extents.iter().any(|id| self.extent(*id).is_busy()) {
            return None;
        }
        let span = self.spans.remove(&start)?;
        self.parting.insert(start, span.bytes);
        self.kept -= span.kept;
        if span.fixed {
            self.accounts.missing += span.missing;
        }
        let addresses = span.addresses;
        let mut remains = Remains { start, bytes: span.bytes, addresses, ..Remains::default() };
        for id in span.extents {
            let extent = self.extents[id.0 as usize].take().expect("a span's extents exist");
            self.vacant.push(id.0);
            self.accounts.total -= extent.bytes;
            if extent.presence == Presence::Resident {
                let (start, bytes, handle, mapped) =
                    (extent.start, extent.bytes, extent.handle, extent.at_home);
                remains.pieces.push(Piece { start, bytes, handle, mapped });
            } else {
                self.accounts.missing -= extent.bytes;
            }
            remains.slots.extend(extent.slots());
        }
        Some(remains)
    }

    /// The memory of remains was given back to the driver.
    pub fn forget(&mut self, bytes: u64) {
        self.accounts.resident -= bytes;
    }

    /// An extent.
    ///
    /// # Panics
    /// If it is gone: ids are only kept while their extent is busy, or within one lock.
    pub fn extent(&self, id: ExtentId) -> &Extent {
        self.extents[id.0 as usize].as_ref().expect("the extent exists while somebody names it")
    }

    /// The extent of that id, if there is one (not necessarily the one that had it before).
    pub fn get(&self, id: ExtentId) -> Option<&Extent> {
        self.extents.get(id.0 as usize)?.as_ref()
    }

    /// As [`Space::extent`].
    pub fn extent_mut(&mut self, id: ExtentId) -> &mut Extent {
        self.extents[id.0 as usize].as_mut().expect("the extent exists while somebody names it")
    }

    /// All extents with their ids.
    pub fn extents(&self) -> impl Iterator<Item = (ExtentId, &Extent)> + '_ {
        self.extents
            .iter()
            .enumerate()
            .filter_map(|(index, extent)| Some((ExtentId(index as u32), extent.as_ref()?)))
    }

    /// Bytes that were freed and are on the device until the engine is done with them.
    pub fn doomed(&self) -> u64 {
        let spans = self.spans.values().filter(|span| span.doomed);
        let extents = spans.flat_map(|span| &span.extents).map(|id| self.extent(*id));
        extents.filter(|extent| extent.handle != 0).map(|extent| extent.bytes).sum()
    }

    /// Whether contents are in their shadows only.
    pub fn has_swapped(&self) -> bool {
        self.accounts.missing > 0 && self.extents().any(|(_, extent)| extent.presence == Presence::Swapped)
    }

    /// The span that starts at `start`.
    pub fn span(&self, start: u64) -> Option<&Span> {
        self.spans.get(&start)
    }

    /// The handle of the application that an extent is a part of, and how far into it.
    pub fn behind(&self, id: ExtentId) -> Option<(Behind, u64)> {
        let extent = self.extent(id);
        let behind = self.spans.get(&extent.span)?.behind?;
        Some((behind, extent.start - extent.span))
    }

    /// All spans by their starts.
    pub fn spans(&self) -> impl Iterator<Item = (u64, &Span)> + '_ {
        self.spans.iter().map(|(start, span)| (*start, span))
    }

    /// The extent at `address`.
    pub fn at(&self, address: u64) -> Option<ExtentId> {
        let (_, span) = self.spans.range(..=address).next_back()?;
        let index = span.extents.partition_point(|id| self.extent(*id).start <= address);
        let id = *span.extents.get(index.checked_sub(1)?)?;
        let extent = self.extent(id);
        (address < extent.start + extent.bytes).then_some(id)
    }

    /// Whether all of the span that `address` lies in is resident; `false` where there is none.
    pub fn is_whole(&self, address: u64) -> bool {
        let span = self.spans.range(..=address).next_back();
        span.is_some_and(|(start, span)| address - start < span.bytes && span.missing == 0)
    }

    /// Bytes that are missing and will be brought in, or taken again: not those of spans that are freed.
    pub fn returning(&self) -> u64 {
        let spans = self.spans.values().filter(|span| !span.doomed);
        spans.map(|span| span.missing).sum::<u64>() + self.owed
    }

    fn span_mut(&mut self, start: u64) -> &mut Span {
        self.spans.get_mut(&start).expect("an extent's span exists")
    }

    fn place(&mut self, mut extent: Extent) -> ExtentId {
        self.placed += 1;
        extent.number = self.placed;
        if let Some(index) = self.vacant.pop() {
            self.extents[index as usize] = Some(extent);
            return ExtentId(index);
        }
        self.extents.push(Some(extent));
        ExtentId(self.extents.len() as u32 - 1)
    }
}
