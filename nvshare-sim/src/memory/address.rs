//! Pieces of the process's address space for the driver: reserved without access, backed by pieces of a card, given back.

#![expect(unsafe_code, reason = "mappings in a range that is reserved here")]

use std::ffi::c_void;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nvshare_sim_card::Run;
use nvshare_sim_card::config::parse_size;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use super::GRANULARITY;
use crate::device::card;

/// Device addresses lie here, far from where the kernel puts programs, heaps, libraries and stacks, unless
/// `NVSHARE_SIM_ADDRESSES=FROM-TO` (such as `64G-512G`) says otherwise: a sanitizer needs this range for itself. They are not used
/// twice until the range is used up: an address that was freed stays recognisable.
static RANGE: LazyLock<Range<u64>> = LazyLock::new(|| {
    let asked = std::env::var("NVSHARE_SIM_ADDRESSES").ok();
    let ends = asked.as_deref().and_then(|asked| asked.split_once('-'));
    let range = ends.and_then(|(from, to)| Some(parse_size(from)?..parse_size(to)?));
    range.unwrap_or(0x0300_0000_0000..0x2000_0000_0000)
});
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RANGE.start));

/// Whether addresses there are only ever given out here.
pub(super) fn is_ours(address: u64) -> bool {
    RANGE.contains(&address)
}

/// Reserves `bytes` at a multiple of `align` (a power of two, at least the granularity); `None` where nothing is left.
pub(super) fn reserve(bytes: u64, align: u64) -> Option<u64> {
    for _ in 0..1000 {
        let place = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            let start = next.checked_next_multiple_of(align)?;
            // A gap behind each: running over the end never reaches somebody else's.
            let end =
                start.checked_add(bytes)?.checked_next_multiple_of(GRANULARITY)?.checked_add(GRANULARITY)?;
            (end <= RANGE.end).then_some(end)
        });
        let Ok(before) = place else {
            if NEXT.swap(RANGE.start, Ordering::Relaxed) == RANGE.start {
                return None;
            }
            continue;
        };
        let start = before.next_multiple_of(align);
        if reserve_at(start, bytes) {
            return Some(start);
        }
    }
    None
}

/// Reserves exactly there, if nothing is there.
pub(super) fn reserve_at(start: u64, bytes: u64) -> bool {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: FIXED_NOREPLACE takes no page that is mapped already.
    match unsafe { mmap_anonymous(start as *mut c_void, bytes as usize, ProtFlags::empty(), flags) } {
        Ok(place) if place as u64 == start => true,
        Ok(elsewhere) => {
            // A kernel before 4.17 takes the address for a hint.
            // SAFETY: the mapping made above.
            unsafe { munmap(elsewhere, bytes as usize) }.is_err()
        }
        Err(_) => false,
    }
}

/// Puts a card's memory behind addresses reserved before: the runs one after another.
///
/// # Safety
/// `start` and what follows for the length of all runs was reserved here, and nothing uses it.
pub(super) unsafe fn back(start: u64, device: usize, runs: &[Run]) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { back_pieces(start, device, &pieces(runs)) }
}

/// Where runs begin in the file of a card's memory, and how many bytes they have.
pub(super) fn pieces(runs: &[Run]) -> Vec<(u64, u64)> {
    let bytes = |blocks: u32| u64::from(blocks) * GRANULARITY;
    runs.iter().map(|run| (bytes(run.first), bytes(run.blocks))).collect()
}

/// As [`back`], with pieces of blocks.
///
/// # Safety
/// As [`back`].
pub(super) unsafe fn back_pieces(start: u64, device: usize, pieces: &[(u64, u64)]) -> Result<(), Errno> {
    let mut at = start;
    for (offset, bytes) in pieces.iter().copied() {
        let file = card().memory_file(device);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        // SAFETY: replaces a reservation, by this function's contract.
        unsafe { mmap(at as *mut c_void, bytes as usize, protection, flags, file, offset)? };
        at += bytes;
    }
    Ok(())
}

/// Makes reserved addresses ordinary memory of the process, zero.
///
/// # Safety
/// As [`back`].
pub(super) unsafe fn open(start: u64, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the caller's range is ours.
    unsafe {
        mprotect(start as *mut c_void, bytes as usize, MprotectFlags::READ | MprotectFlags::WRITE)?;
        // Only advice: without huge pages first touches take longer.
        libc::madvise(start as *mut c_void, bytes as usize, libc::MADV_HUGEPAGE);
    }
    Ok(())
}

/// Takes away what is behind addresses; they stay reserved.
///
/// # Safety
/// The range was reserved here, and nothing uses it any more.
pub(super) unsafe fn unback(start: u64, bytes: u64) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: replaces our own mapping, by this function's contract.
    let done = unsafe { mmap_anonymous(start as *mut c_void, bytes as usize, ProtFlags::empty(), flags) };
    done.expect("replacing a mapping by a reservation");
}

/// Gives addresses back to the process.
///
/// # Safety
/// As [`unback`].
pub(super) unsafe fn release(start: u64, bytes: u64) {
    // SAFETY: our own mapping, by this function's contract.
    unsafe { munmap(start as *mut c_void, bytes as usize) }.expect("giving back a reservation");
}
