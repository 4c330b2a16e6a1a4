//! The simulated card that processes share: its memory, its clocks, who holds what.
//!
//! A directory ([`config::directory`]) holds one or more cards: a control block (`control`), the bytes of each card
//! (`memory-N`), what stands for the module for managed memory (`nvidia-uvm`), a file per exported handle and the strict
//! simulator's complaints (`violations`). [`Cards`] is a view of
//! it for anybody (NVML, tests, the demo); a process that uses the cards joins them as a [`Member`].
//!
//! [`config`] what can be chosen; [`ledger`] who holds which block; [`managed`] the driver's own paging; `uvm` how others see that;
//! [`clock`] the time that transfers and kernels take; [`faults`] what is to go wrong on purpose,
//! `bus` which card is to be lost; [`ticket`] and `sharing` what processes show each other.

#![deny(unsafe_code)]

mod bus;
pub mod clock;
pub mod config;
mod control;
mod export;
pub mod faults;
mod ledger;
mod lock;
pub mod managed;
mod member;
mod memory;
pub mod process;
mod sharing;
pub mod ticket;
mod uvm;

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

pub use bus::Bus;
pub use clock::{Lane, Traffic, now, sleep_until};
pub use config::{BLOCK_BYTES, Config};
pub use control::OpenError;
use control::{Control, failed};
pub use export::ImportError;
pub use faults::{Effect, FaultPlan, Point};
pub use ledger::{EventId, HandleId, Run, ShareError, ShareId};
pub use managed::{ManagedRange, Moved};
pub use member::{Allocation, Full, Member};
pub use sharing::{Opened, Progress, Recorded, SharedEvent};
pub use ticket::{PoolName, Ticket};
pub use uvm::Window;

/// The name of every simulated device, in CUDA and NVML.
pub const DEVICE_NAME: &str = "NVIDIA nvshare-sim";

/// What `nvmlSystemGetDriverVersion` answers.
pub const DRIVER_VERSION: &str = "580.0.0-sim";

/// The cards of a directory.
pub struct Cards {
    directory: PathBuf,
    control: Control,
}

/// Who uses how much of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The card's memory.
    pub total: u64,
    /// What nobody holds.
    pub free: u64,
    /// What each process with any memory holds, by process id.
    pub processes: Vec<(u32, u64)>,
}

impl Cards {
    /// The cards that the environment names.
    pub fn from_environment() -> Result<Cards, OpenError> {
        let lookup = |name: &str| std::env::var(name).ok();
        Cards::open(&config::directory(lookup), &Config::parse(lookup)?)
    }

    /// The cards of `directory`, made with `config` if nobody did so before.
    pub fn open(directory: &Path, config: &Config) -> Result<Cards, OpenError> {
        let control = Control::open(directory, config)?;
        let directory = directory.canonicalize().map_err(failed("find", directory))?;
        Ok(Cards { directory, control })
    }

    /// The parameters that the first process chose.
    pub fn config(&self) -> &Config {
        self.control.config()
    }

    /// Where the cards' files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The UUID of a card: the same in every process, another in every directory.
    pub fn uuid(&self, card: usize) -> [u8; 16] {
        uuid(&self.directory, card)
    }

    /// What is free and who holds the rest. Reclaims what dead processes held.
    pub fn usage(&self, card: usize) -> Usage {
        self.reclaim();
        let locked = self.control.lock();
        let ledger = &locked.ledger;
        let processes = ledger.processes.iter().zip(ledger.charged(card));
        Usage {
            total: self.config().card_bytes,
            free: u64::from(ledger.totals.free[card]) * BLOCK_BYTES,
            processes: processes
                .filter(|(process, blocks)| process.identity.pid != 0 && *blocks > 0)
                .map(|(process, blocks)| (process.identity.pid, u64::from(blocks) * BLOCK_BYTES))
                .collect(),
        }
    }

    /// Reserves a lane of the card for `nanoseconds` from `earliest` on, or from when it is free: returns the end.
    pub fn reserve(&self, card: usize, lane: Lane, earliest: u64, nanoseconds: u64) -> u64 {
        self.control.clocks(card).reserve(self.config(), lane, earliest, nanoseconds)
    }

    /// Counts bytes that a copy moves over the link.
    pub fn count_copy(&self, card: usize, lane: Lane, bytes: u64) {
        match lane {
            Lane::ToDevice => self.control.clocks(card).count(0, bytes),
            Lane::ToHost => self.control.clocks(card).count(1, bytes),
            Lane::Compute => {}
        }
    }

    /// Bytes that crossed the card's link so far.
    pub fn traffic(&self, card: usize) -> Traffic {
        self.control.clocks(card).traffic()
    }

    /// Frees what dead processes, unless somebody has a descriptor of their managed memory, and exported handles of which no
    /// descriptor is left, hold.
    pub fn reclaim(&self) {
        let mut locked = self.control.lock();
        locked.ledger.reclaim(|process| {
            process::is_alive(process.identity) || uvm::is_held(&self.directory, process.space)
        });
        locked.ledger.reclaim_exports(|id| export::in_use(&self.directory, id));
        locked.unlock();
    }

    /// Writes a complaint of the strict simulator to stderr and to `violations`.
    pub fn violation(&self, text: impl Display) {
        let line = format!("nvshare-sim: strict: {text}\n");
        eprint!("{line}");
        let file = OpenOptions::new().append(true).create(true).open(self.directory.join("violations"));
        // One write: lines of several processes do not mix.
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("nvshare-sim: cannot write to {}/violations: {error}", self.directory.display());
        }
    }
}

/// The UUID of a card in this directory.
fn uuid(directory: &Path, card: usize) -> [u8; 16] {
    let hash = |seed: u64| {
        let path = directory.as_os_str().as_encoded_bytes().iter().copied();
        path.chain((card as u64).to_le_bytes())
            .fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_be_bytes());
    uuid[8..].copy_from_slice(&hash(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
