//! The bytes of a card: one sparse file, whose blocks are faulted in once, as huge pages where the kernel can.

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
    /// Blocks known to be in memory.
    prepared: Box<[AtomicBool]>,
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
        Ok(Memory {
            file,
            base,
            prepared: (0..bytes / BLOCK_BYTES).map(|_| AtomicBool::new(false)).collect(),
            collapse: AtomicBool::new(true),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Faults blocks in that this process did not see in memory yet. What they hold stays.
    pub(crate) fn prepare(&self, run: Run) {
        for block in run.first..run.first + run.blocks {
            if !self.prepared[block as usize].swap(true, Ordering::Relaxed) {
                self.prepare_block(block);
            }
        }
    }

    fn prepare_block(&self, block: u32) {
        const BYTES: usize = BLOCK_BYTES as usize;
        // SAFETY: the block lies within the mapping, which is as long as the file.
        let address = unsafe { self.base.as_ptr().add(block as usize * BYTES) };
        // SAFETY: advice on our own mapping, which changes no byte.
        let advise = |bytes, advice| unsafe { libc::madvise(address.cast(), bytes, advice) == 0 };
        // An empty block cannot be collapsed: its first page is made to exist. A kernel that knows neither advice leaves
        // the pages to be faulted in by their first use.
        if self.collapse.load(Ordering::Relaxed) && advise(4096, MADV_POPULATE_WRITE) {
            if advise(BYTES, MADV_COLLAPSE) {
                return;
            }
            if std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
                self.collapse.store(false, Ordering::Relaxed);
            }
        }
        advise(BYTES, MADV_POPULATE_WRITE);
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
