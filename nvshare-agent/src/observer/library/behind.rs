//! Behind the exported functions: the ones that do their work, found through what the exported ones jump to or call. A
//! probe there counts what it should only if nothing else leads there; that is looked for in the whole library.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nvshare_common::probe::PROBES;
use object::read::RelocationFlags;
use object::{Object, elf};

use super::{Bounded, Elf, Library, Symbol, code, executable};
use crate::observer::site::{self, Next};

/// In no more code than this is looked for what else leads somewhere (NVIDIA's libraries have 16 to 20 MB).
const MOST_CODE: u64 = 64 << 20;
/// So much is read at a time.
const PIECE: u64 = 1 << 20;
/// Pieces overlap by this much, the length of what names an address: nothing is missed, nothing found twice.
const OVERLAP: u64 = 5;

/// What leads to a function, and what is known to.
#[derive(Default)]
struct Ways {
    from: Vec<usize>,
    direct: usize,
    pointers: Vec<u64>,
    seen_direct: usize,
    seen_pointers: usize,
}

/// For each function of the table the one behind it, as far as it has one of its own.
pub(super) fn find<'data>(
    elf: &Elf<'data>,
    bytes: Bounded<'data>,
    symbols: &[Option<Symbol>],
    file: &File,
) -> Vec<Option<u64>> {
    let mut behind = vec![None; symbols.len()];
    let next = |symbol: &Symbol| {
        let (_, code) = code(elf, bytes, symbol.address, symbol.length)?;
        site::passes_on(code, symbol.address)
    };
    let nexts: Vec<Option<Next>> = symbols.iter().map(|symbol| next(symbol.as_ref()?)).collect();
    let pointers = pointers(elf);
    let mut ways: HashMap<u64, Ways> = HashMap::new();
    for (index, next) in nexts.into_iter().enumerate() {
        match next {
            Some(Next::At(target)) => {
                let ways = ways.entry(target).or_default();
                ways.from.push(index);
                ways.direct += 1;
            }
            Some(Next::Through(slot)) => {
                let Some(target) = pointers.get(&slot) else { continue };
                let ways = ways.entry(*target).or_default();
                ways.from.push(index);
                if !ways.pointers.contains(&slot) {
                    ways.pointers.push(slot);
                }
            }
            None => {}
        }
    }
    for target in pointers.values() {
        if let Some(ways) = ways.get_mut(target) {
            ways.seen_pointers += 1;
        }
    }
    if !look_through(elf, file, &mut ways) {
        return behind;
    }
    for (target, ways) in ways {
        let alone = ways.seen_direct == ways.direct && ways.seen_pointers == ways.pointers.len();
        // Two names may lead to one function, if it does the same under both: it is counted once, under the first.
        let (first, cookie) = (ways.from[0], |index: usize| {
            let probe = &PROBES[index];
            (probe.call, probe.returns, Library::shape(probe))
        });
        if alone && ways.from.iter().all(|index| cookie(*index) == cookie(first)) {
            for index in ways.from {
                behind[index] = Some(target);
            }
        } else {
            tracing::debug!(symbol = PROBES[first].symbol, "what is behind it is reached in other ways too");
        }
    }
    behind
}

/// The words that the loader fills with addresses within the library: place and address.
fn pointers(elf: &Elf<'_>) -> HashMap<u64, u64> {
    let relative = RelocationFlags::Elf { r_type: elf::R_X86_64_RELATIVE };
    let Some(relocations) = elf.dynamic_relocations() else { return HashMap::new() };
    relocations
        .filter(|(_, relocation)| relocation.flags() == relative)
        .map(|(place, relocation)| (place, relocation.addend() as u64))
        .collect()
}

/// Counts what else in the code leads to the targets. `false` if not all of it could be looked at.
fn look_through(elf: &Elf<'_>, file: &File, ways: &mut HashMap<u64, Ways>) -> bool {
    let wanted: Vec<u64> = ways.keys().copied().collect();
    if executable(elf).fold(0, |sum: u64, segment| sum.saturating_add(segment.bytes)) > MOST_CODE {
        return false;
    }
    let mut piece = vec![0; (PIECE + OVERLAP) as usize];
    for segment in executable(elf) {
        let mut at = 0;
        while at < segment.bytes {
            let length = (segment.bytes - at).min(PIECE + OVERLAP);
            let piece = &mut piece[..length as usize];
            if file.read_exact_at(piece, segment.offset.wrapping_add(at)).is_err() {
                return false;
            }
            site::named_in(piece, segment.address.wrapping_add(at), &wanted, |target| {
                if let Some(ways) = ways.get_mut(&target) {
                    ways.seen_direct += 1;
                }
            });
            at += PIECE;
        }
    }
    true
}
