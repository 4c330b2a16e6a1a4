//! Where somebody counts for us: a page of our own to which the module adds, or a piece of a file that another process maps.

#![expect(unsafe_code, reason = "memory to which others add")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::counts::Counts;

/// The counters of a page: `UvmCounterName`.
pub(super) const TO_DEVICE: usize = 0;
pub(super) const TO_HOST: usize = 1;
pub(super) const CPU_FAULTS: usize = 2;
pub(super) const FAULTS: usize = 9;
/// `UVM_TOTAL_COUNTERS`.
const COUNTERS: usize = 10;

/// At least what the kernel takes for one.
const PAGE: usize = 4096;

/// Counters that are mapped. Shared memory: a child of ours that is on its way to another program takes no copy of it away.
pub(super) struct Page {
    start: NonNull<u8>,
    bytes: usize,
    /// Where in it the counters begin.
    at: usize,
    begun: Counts,
}

// SAFETY: the mapping belongs to this value alone, and what is read in it is atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// A page of our own, all at zero.
    pub(super) fn new() -> io::Result<Page> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, protection, MapFlags::SHARED) }?;
        Page::mapped(address.cast(), PAGE, 0)
    }

    /// The counters that begin `at` so many bytes of a file. What they say now was counted for others.
    pub(super) fn of(file: &File, at: u64) -> io::Result<Page> {
        let end = at.checked_add(size_of::<[AtomicU64; COUNTERS]>() as u64);
        let bytes = file.metadata()?.len();
        if !at.is_multiple_of(8) || end.is_none_or(|end| end > bytes) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no counters there"));
        }
        let bytes = bytes as usize;
        // SAFETY: as above.
        let address =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), 0) }?;
        let mut page = Page::mapped(address.cast(), bytes, at as usize)?;
        page.begun = page.read();
        Ok(page)
    }

    fn mapped(start: *mut u8, bytes: usize, at: usize) -> io::Result<Page> {
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Page { start, bytes, at, begun: Counts::default() })
    }

    /// Where it is mapped.
    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// What it said when it began to count for us.
    pub(super) fn begun(&self) -> Counts {
        self.begun
    }

    /// What it says now.
    pub(super) fn read(&self) -> Counts {
        let counter = |index: usize| self.counters()[index].load(Ordering::Relaxed);
        Counts {
            to_device: counter(TO_DEVICE),
            to_host: counter(TO_HOST),
            cpu_faults: counter(CPU_FAULTS),
            faults: counter(FAULTS),
        }
    }

    fn counters(&self) -> &[AtomicU64; COUNTERS] {
        // SAFETY: all of the counters lie in the mapping, aligned for them, which lives as long as `self`; nobody makes its file
        // shorter. All bit patterns are valid, and who counts adds to them atomically.
        unsafe { self.start.add(self.at).cast().as_ref() }
    }

    /// Counts as the module would.
    #[cfg(test)]
    pub(super) fn set(&self, counts: Counts) {
        for (index, count) in [
            (TO_DEVICE, counts.to_device),
            (TO_HOST, counts.to_host),
            (CPU_FAULTS, counts.cpu_faults),
            (FAULTS, counts.faults),
        ] {
            self.counters()[index].store(count, Ordering::Relaxed);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this size, and references into it cannot outlive `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
