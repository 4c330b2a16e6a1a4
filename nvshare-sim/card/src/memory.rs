//! The bytes of a card: one sparse file, whose blocks are faulted in once, as huge pages where the kernel can.

#![expect(unsafe_code, reason = "a mapping of the card's file")]

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use crate::config::BLOCK_BYTES;
use crate::control::{OpenError, failed};
use crate::ledger::Run;

const MADV_POPULATE_WRITE: i32 = 23;
const MADV_COLLAPSE: i32 = 25;

/// One card's memory file, mapped as a whole for preparing its blocks.
pub(crate) struct Memory {
    file: File,
    base: NonNull<u8>,
    /// Collapsing works here.
    collapse: AtomicBool,
}

// SAFETY: the mapping lives as long as the process, and only blocks that this process holds are touched through it.
unsafe impl Send for Memory {}
// SAFETY: as above; everything else is atomic.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn open(directory: &Path, card: usize, bytes: u64) -> Result<Memory, OpenError> {
        let path = directory.join(format!("memory-{card}"));
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        let base = map_aligned(&file, bytes as usize).map_err(|error| failed("map", &path)(error.into()))?;
        Ok(Memory { file, base, collapse: AtomicBool::new(true) })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Faults in the blocks of a run that no process had faulted in before; `prepared` says so for each block of the
    /// card. What they hold stays.
    pub(crate) fn prepare(&self, run: Run, prepared: &[AtomicBool]) {
        let (mut first, end) = (run.first, run.first + run.blocks);
        let is_ready = |block: u32| prepared[block as usize].load(Ordering::Relaxed);
        while first < end {
            let count = (first..end).take_while(|block| !is_ready(*block)).count() as u32;
            if count > 0 {
                self.fault_in(first, count);
                for block in first..first + count {
                    prepared[block as usize].store(true, Ordering::Relaxed);
                }
            }
            first += count.max(1);
        }
    }

    /// All at once: the kernel empties every processor's page lists for each call.
    fn fault_in(&self, first: u32, count: u32) {
        const BLOCK: usize = BLOCK_BYTES as usize;
        let advise = |offset: usize, bytes, advice| {
            // SAFETY: advice, which changes no byte, on a part of our own mapping: it is as long as the file, and the
            // blocks lie within the file.
            unsafe { libc::madvise(self.base.as_ptr().add(offset).cast(), bytes, advice) == 0 }
        };
        let (start, bytes) = (first as usize * BLOCK, count as usize * BLOCK);
        // An empty block cannot be collapsed: its first page is made to exist. A kernel that knows neither advice leaves
        // the pages to be faulted in by their first use.
        let begun =
            || (start..start + bytes).step_by(BLOCK).all(|block| advise(block, 4096, MADV_POPULATE_WRITE));
        if self.collapse.load(Ordering::Relaxed) && begun() {
            if advise(start, bytes, MADV_COLLAPSE) {
                return;
            }
            if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
                self.collapse.store(false, Ordering::Relaxed);
            }
        }
        advise(start, bytes, MADV_POPULATE_WRITE);
    }
}

/// Maps a whole file at a multiple of the block size, so that its blocks can be huge pages.
fn map_aligned(file: &File, bytes: usize) -> rustix::io::Result<NonNull<u8>> {
    let align = BLOCK_BYTES as usize;
    // SAFETY: new mappings; the second one replaces a part of the first, which nobody else knows. The rest of the first
    // stays reserved: two megabytes of address space.
    unsafe {
        let room = rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            bytes + align,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )?;
        let start = room.byte_add(room.addr().next_multiple_of(align) - room.addr());
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let base = rustix::mm::mmap(start, bytes, ProtFlags::READ | ProtFlags::WRITE, flags, file, 0)?;
        Ok(NonNull::new(base.cast()).expect("mmap gives no null"))
    }
}
