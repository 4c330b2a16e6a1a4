//! The control block: one file that every process maps, with the parameters, the clocks and the tables of the ledger.

#![expect(unsafe_code, reason = "a mapping that processes share")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FlockOperation, flock, ftruncate};
use rustix::mm::{MapFlags, ProtFlags};

use crate::clock::Clocks;
use crate::config::{Config, MAX_CARDS};
use crate::ledger::{
    Block, Event, Handle, Ledger, MAX_EVENTS, MAX_HANDLES, MAX_PROCESSES, MAX_SHARES, Process, Share, Totals,
};
use crate::lock::{Guard, SharedMutex};
use crate::uvm::Spaces;

const MAGIC: u64 = u64::from_le_bytes(*b"nvs-card");
/// Changes with the layout of anything in the file.
const LAYOUT: u64 = 4;

#[repr(C)]
struct Header {
    magic: u64,
    layout: u64,
    config: Config,
    mutex: SharedMutex,
    clocks: [Clocks; MAX_CARDS],
    totals: Totals,
    processes: [Process; MAX_PROCESSES],
    handles: [Handle; MAX_HANDLES],
    shares: [Share; MAX_SHARES],
    events: [Event; MAX_EVENTS],
    // Follow: a `Block` for each block of each card, and a flag for each: it was faulted in.
}

/// Why the cards cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A variable of the environment makes no sense.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The directory, or a file in it.
    #[error("cannot {act} {path} of the simulated card: {source} (NVSHARE_SIM_DIR names the directory)")]
    File {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Another version of the simulator made the directory.
    #[error(
        "{0} was made by another version of nvshare-sim: end the processes that use it, remove its directory and try \
         again"
    )]
    Layout(PathBuf),
    /// Device memory would not fit.
    #[error(
        "the file system of {path} has {free} bytes free and the simulated cards need {needed}: choose a larger tmpfs \
         by NVSHARE_SIM_DIR, or smaller cards by NVSHARE_SIM_CARD_BYTES"
    )]
    Space {
        /// The directory.
        path: PathBuf,
        /// What is there.
        free: u64,
        /// What the cards need when full.
        needed: u64,
    },
    /// Too many processes.
    #[error("{MAX_PROCESSES} processes use {0} already: no more can join")]
    Processes(PathBuf),
}

/// The mapped control block.
pub(crate) struct Control {
    header: NonNull<Header>,
    spaces: Spaces,
}

// SAFETY: the mapping lives as long as the process; its tables are reached through the process-shared mutex only, its
// clocks are atomics, and the configuration does not change once the block is published.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

/// The ledger with the lock held.
pub(crate) struct Locked<'a> {
    pub(crate) ledger: Ledger<'a>,
    guard: Guard<'a>,
}

/// An `io::Error` with what was tried on what.
pub(crate) fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::File { act, path, source }
}

impl Control {
    /// Opens the control block of `directory`; the first to do so makes it, with `config`.
    pub(crate) fn open(directory: &Path, config: &Config) -> Result<Control, OpenError> {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        let lock_path = directory.join("lock");
        let lock = open(&lock_path)?;
        // Until the file is closed: only one process at a time makes or checks the block.
        flock(lock.as_fd(), FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", &lock_path)(error.into()))?;
        let path = directory.join("control");
        let file = open(&path)?;
        let length = file.metadata().map_err(failed("read", &path))?.len();
        let header = if length == 0 {
            Control::make(directory, &path, &file, config)?
        } else {
            Control::check(&path, &file, length)?
        };
        // SAFETY: mapped, and not written any more.
        let cards = unsafe { header.as_ref().config.cards };
        Ok(Control { header, spaces: Spaces::open(directory, cards as usize)? })
    }

    fn make(
        directory: &Path,
        path: &Path,
        file: &File,
        config: &Config,
    ) -> Result<NonNull<Header>, OpenError> {
        let needed = config.cards * config.card_bytes;
        let place =
            rustix::fs::statvfs(directory).map_err(|error| failed("look at", directory)(error.into()))?;
        let free = place.f_bavail * place.f_frsize;
        if free < needed {
            return Err(OpenError::Space { path: directory.to_owned(), free, needed });
        }
        for card in 0..config.cards as usize {
            let path = directory.join(format!("memory-{card}"));
            ftruncate(open(&path)?, config.card_bytes)
                .map_err(|error| failed("size", &path)(error.into()))?;
        }
        let mapped = Control::map(path, file, size_of::<Header>(), config)?;
        let header = mapped.as_ptr();
        // SAFETY: the file is new and zero, every field is valid when zero except the mutex and the configuration,
        // and no other process looks before it gets the directory's lock.
        unsafe {
            (*header).config = *config;
            (*header).layout = LAYOUT;
            SharedMutex::init(&raw mut (*header).mutex);
            for card in 0..config.cards as usize {
                (*header).totals.free[card] = config.blocks() as u32;
            }
            (*header).magic = MAGIC;
        }
        Ok(mapped)
    }

    fn check(path: &Path, file: &File, length: u64) -> Result<NonNull<Header>, OpenError> {
        if length < size_of::<Header>() as u64 {
            return Err(OpenError::Layout(path.to_owned()));
        }
        let first = Control::map(path, file, size_of::<Header>(), &Config { cards: 0, ..Config::default() })?;
        // SAFETY: the header is mapped.
        let (magic, layout, config) = unsafe {
            let header = first.as_ref();
            (header.magic, header.layout, header.config)
        };
        if magic != MAGIC || layout != LAYOUT || length != file_bytes(&config) {
            return Err(OpenError::Layout(path.to_owned()));
        }
        Control::map(path, file, size_of::<Header>(), &config)
    }

    fn map(path: &Path, file: &File, header: usize, config: &Config) -> Result<NonNull<Header>, OpenError> {
        let bytes = file_bytes(config);
        debug_assert!(bytes >= header as u64);
        if file.metadata().map_err(failed("read", path))?.len() < bytes {
            ftruncate(file, bytes).map_err(|error| failed("size", path)(error.into()))?;
        }
        // SAFETY: a new mapping at an address the kernel chooses touches nothing else.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        let address = address.map_err(|error| failed("map", path)(error.into()))?;
        Ok(NonNull::new(address.cast()).expect("mmap gives no null"))
    }

    pub(crate) fn config(&self) -> &Config {
        // SAFETY: mapped for the life of the process and never written after `make`.
        unsafe { &(*self.header.as_ptr()).config }
    }

    pub(crate) fn clocks(&self, card: usize) -> &Clocks {
        // SAFETY: mapped for the life of the process; clocks are atomics.
        unsafe { &(*self.header.as_ptr()).clocks[card] }
    }

    /// The events that processes share.
    pub(crate) fn events(&self) -> &[Event] {
        // SAFETY: mapped for the life of the process; events are atomics.
        unsafe { &(*self.header.as_ptr()).events }
    }

    /// For each block of a card: whether it was faulted in.
    pub(crate) fn prepared(&self, card: usize) -> &[AtomicBool] {
        let config = self.config();
        let (cards, blocks) = (config.cards as usize, config.blocks());
        // SAFETY: as `file_bytes` says, the flags follow the blocks, which follow the header; only ever 0 or 1 is stored,
        // and the mapping lasts.
        unsafe {
            let flags = self.header.as_ptr().add(1).cast::<Block>().add(cards * blocks).cast::<AtomicBool>();
            std::slice::from_raw_parts(flags.add(card * blocks), blocks)
        }
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        let header = self.header.as_ptr();
        // SAFETY: the mutex was made before the block was published.
        let guard = unsafe { &(*header).mutex }.lock();
        let config = self.config();
        // SAFETY: the lock is held until the `Locked` is dropped, so these are the only references to the tables in any
        // process; the blocks follow the header in the mapping, as `file_bytes` says.
        let mut ledger = unsafe {
            Ledger {
                processes: &mut (*header).processes,
                handles: &mut (*header).handles,
                blocks: std::slice::from_raw_parts_mut(
                    header.add(1).cast::<Block>(),
                    config.cards as usize * config.blocks(),
                ),
                per_card: config.blocks(),
                totals: &mut (*header).totals,
                shares: &mut (*header).shares,
                events: &(*header).events,
                spaces: self.spaces.all(),
            }
        };
        if guard.inherited {
            ledger.repair();
        }
        Locked { ledger, guard }
    }
}

impl Locked<'_> {
    /// Unlocks now rather than at the end of the scope.
    pub(crate) fn unlock(self) {
        drop(self.guard);
    }
}

fn file_bytes(config: &Config) -> u64 {
    let blocks = config.cards as usize * config.blocks();
    (size_of::<Header>() + blocks * (size_of::<Block>() + size_of::<AtomicBool>())) as u64
}

pub(crate) fn open(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("open", path))
}
