//! Turns by a file lock: how processes share a card today when they do not want to thrash.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The lock, and the one in front of it: who waits at the first is next, so nobody gets two turns in a row while
/// another waits.
pub(crate) struct Turns {
    turn: File,
    next: File,
    quantum: Duration,
    held_since: Option<Instant>,
    /// How many times the lock was taken.
    pub(crate) taken: u64,
    /// How many times it was taken from another process.
    pub(crate) switches: u64,
}

impl Turns {
    /// Opens (and makes) the lock files; takes nothing yet.
    pub(crate) fn open(path: &Path, quantum: Duration) -> Result<Turns> {
        let open = |path: PathBuf| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("cannot open the lock {}", path.display()))
        };
        let mut next = path.as_os_str().to_owned();
        next.push(".next");
        Ok(Turns {
            turn: open(path.to_owned())?,
            next: open(next.into())?,
            quantum,
            held_since: None,
            taken: 0,
            switches: 0,
        })
    }

    /// Takes the lock unless it is held. Whether somebody else had it in between.
    pub(crate) fn take(&mut self) -> Result<bool> {
        if self.held_since.is_some() {
            return Ok(false);
        }
        self.next.lock()?;
        self.turn.lock()?;
        self.next.unlock()?;
        self.held_since = Some(Instant::now());
        self.taken += 1;
        let mine = std::process::id().to_string();
        let mut last = String::new();
        self.turn.rewind()?;
        self.turn.read_to_string(&mut last)?;
        if last != mine {
            self.turn.set_len(0)?;
            self.turn.seek(SeekFrom::Start(0))?;
            self.turn.write_all(mine.as_bytes())?;
            self.switches += 1;
        }
        Ok(last != mine)
    }

    /// Hands the lock over when the quantum has passed.
    pub(crate) fn yield_after_quantum(&mut self) -> Result<()> {
        if self.held_since.is_some_and(|since| since.elapsed() >= self.quantum) {
            self.give()?;
        }
        Ok(())
    }

    /// Hands the lock over.
    pub(crate) fn give(&mut self) -> Result<()> {
        if self.held_since.take().is_some() {
            self.turn.unlock()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_handed_over_after_the_quantum_only() {
        let path = std::env::temp_dir().join(format!("nvshare-turns-{}", std::process::id()));
        let mut turns = Turns::open(&path, Duration::from_hours(1)).unwrap();
        assert!(turns.take().unwrap());
        assert!(!turns.take().unwrap());
        turns.yield_after_quantum().unwrap();
        let other = File::open(&path).unwrap();
        assert!(other.try_lock().is_err());
        turns.quantum = Duration::ZERO;
        turns.yield_after_quantum().unwrap();
        other.try_lock().unwrap();
        drop(other);
        assert!(!turns.take().unwrap(), "nobody else had it in between");
        assert_eq!((turns.taken, turns.switches), (2, 1));
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(path.with_extension("next")).unwrap_or_default();
    }
}
