//! What stands for NVIDIA's module for managed memory: the file `nvidia-uvm` of the cards' directory, which all processes map.
//!
//! It is both of the module's devices. A process keeps it open as it does `/dev/nvidia-uvm`: the position of that descriptor says
//! which space is its own (at the beginning: none, and the module would refuse it). Whoever gets a duplicate of the descriptor reads
//! there what `/dev/nvidia-uvm-tools` would count. And until that is closed, it keeps all that a process with managed memory has on
//! the cards, as the module's trackers do: a lock tells, which ends with the last duplicate. A mapping of the file stands for each
//! piece of managed memory.
//!
//! The file has places of 1024 bytes, of numbers of 8 bytes as the machine has them. The first has a magic number, the number of
//! cards, and their UUIDs of 16 bytes each. Each other one is a space: rows of ten counters ([`crate::ledger::Counter`] has those in
//! use), one row for everything and one for each card.

#![expect(unsafe_code, reason = "a file that processes map, and locks of open files")]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

use rustix::fs::ftruncate;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::config::MAX_CARDS;
use crate::control::{self, OpenError, failed};
use crate::ledger::Space;

const FILE: &str = "nvidia-uvm";
const MAGIC: u64 = u64::from_le_bytes(*b"nvs--uvm");
const SPACES: usize = 1023;
const PLACE: i64 = size_of::<Space>() as i64;

#[repr(C, align(1024))]
struct Head {
    magic: u64,
    cards: u64,
    uuids: [[u8; 16]; MAX_CARDS],
}

/// All of the file: less than the driver maps of the device for itself.
#[repr(C)]
struct Contents {
    head: Head,
    spaces: [Space; SPACES],
}

const _: () = assert!(size_of::<Contents>() == 1 << 20 && size_of::<Head>() == PLACE as usize);

/// The mapped file.
pub(crate) struct Spaces(NonNull<Contents>);

// SAFETY: the mapping lives as long as the process; its head is written before anybody else can see it, and the rest is atomic.
unsafe impl Send for Spaces {}
// SAFETY: as above.
unsafe impl Sync for Spaces {}

impl Spaces {
    /// Maps the file; who finds none makes it. Call with the directory's lock.
    pub(crate) fn open(directory: &Path, cards: usize) -> Result<Spaces, OpenError> {
        let path = directory.join(FILE);
        let file = control::open(&path)?;
        ftruncate(&file, size_of::<Contents>() as u64)
            .map_err(|error| failed("size", &path)(error.into()))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else.
        let address = unsafe {
            mmap(std::ptr::null_mut(), size_of::<Contents>(), protection, MapFlags::SHARED, &file, 0)
        };
        let address = address.map_err(|error| failed("map", &path)(error.into()))?;
        let spaces = Spaces(NonNull::new(address.cast()).expect("mmap gives no null"));
        let directory = directory.canonicalize().map_err(failed("find", directory))?;
        // SAFETY: the mapping is as long as its contents, all bit patterns are valid, and the directory's lock is held: no
        // other process writes the head. Whoever reads it meanwhile finds no magic number.
        unsafe {
            let head = &raw mut (*spaces.0.as_ptr()).head;
            if (*head).magic != MAGIC {
                (*head).cards = cards as u64;
                for (card, uuid) in (*head).uuids.iter_mut().enumerate().take(cards) {
                    *uuid = crate::uuid(&directory, card);
                }
                std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
                (*head).magic = MAGIC;
            }
        }
        Ok(spaces)
    }

    pub(crate) fn all(&self) -> &[Space] {
        // SAFETY: mapped for the life of the process; spaces are atomics.
        unsafe { &(*self.0.as_ptr()).spaces }
    }
}

/// A process's own: for the driver it would be `/dev/nvidia-uvm`.
#[derive(Debug)]
pub(crate) struct Descriptor {
    file: File,
    space: u32,
}

impl Descriptor {
    /// Of the process's space.
    pub(crate) fn open(directory: &Path, space: u32) -> io::Result<Descriptor> {
        let mut file = OpenOptions::new().read(true).write(true).open(directory.join(FILE))?;
        file.seek(SeekFrom::Start(PLACE as u64 * u64::from(space)))?;
        Ok(Descriptor { file, space })
    }

    /// From here on whoever has a duplicate keeps what the process has. It was given out before, perhaps, and still counts.
    pub(crate) fn keep(&self) {
        if let Err(error) = lock(&self.file, libc::F_OFD_SETLK, self.space) {
            eprintln!("nvshare-sim: managed memory ends with its process: {error}");
        }
    }

    /// What shows, among the mappings of the process, that it has so much managed memory.
    pub(crate) fn window(&self, bytes: u64) -> io::Result<Window> {
        let (flags, none) = (MapFlags::SHARED | MapFlags::NORESERVE, ProtFlags::empty());
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing else; it cannot be accessed.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes as usize, none, flags, &self.file, 0) }?;
        Ok(Window { start: start as usize, bytes: bytes as usize })
    }
}

/// A mapping of the file that nobody can access.
#[derive(Debug)]
pub struct Window {
    start: usize,
    bytes: usize,
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and there are no references into it.
        let _ = unsafe { munmap(self.start as *mut _, self.bytes) };
    }
}

/// Whether anybody has a descriptor of a space in which there was managed memory.
pub(crate) fn is_held(directory: &Path, space: u32) -> bool {
    let file = OpenOptions::new().read(true).write(true).open(directory.join(FILE));
    file.is_ok_and(|file| {
        lock(&file, libc::F_OFD_GETLK, space).is_ok_and(|found| found != libc::F_UNLCK as libc::c_short)
    })
}

/// Takes the lock of a space through this open file, or asks for it; says what kind there is then.
fn lock(file: &File, command: libc::c_int, space: u32) -> io::Result<libc::c_short> {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: PLACE * i64::from(space),
        l_len: PLACE,
        l_pid: 0,
    };
    // SAFETY: the call takes such a structure, which lives until it returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(lock.l_type),
        _ => Err(io::Error::last_os_error()),
    }
}
