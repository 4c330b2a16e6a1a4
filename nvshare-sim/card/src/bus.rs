//! Cards that fall off the bus, or hang, while everything runs: a file in the cards' directory, `lost-1`, `unlisted-1` or
//! `hung-1`, says so of the second card, and its removal brings the card back. Only NVML looks: programs that use the card
//! go on.

use std::path::PathBuf;
use std::{fs, io};

use crate::Cards;

/// Where a card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// Where it belongs.
    There,
    /// It answers no more, and is still listed.
    Lost,
    /// The driver, when it starts the next time, does not list it; until then it is lost.
    Unlisted,
    /// No question about it is answered, well or not, before it is back.
    Hung,
}

const FILES: [(Bus, &str); 3] = [(Bus::Lost, "lost"), (Bus::Unlisted, "unlisted"), (Bus::Hung, "hung")];

impl Cards {
    /// Where the card is now.
    pub fn bus(&self, card: usize) -> Bus {
        let found = FILES.into_iter().find(|(_, name)| self.bus_file(name, card).exists());
        found.map_or(Bus::There, |(bus, _)| bus)
    }

    /// Takes a card off the bus, or puts it back.
    pub fn set_bus(&self, card: usize, bus: Bus) -> io::Result<()> {
        // The new file first: in between the card is not back.
        for (_, name) in FILES.into_iter().filter(|(kind, _)| *kind == bus) {
            fs::write(self.bus_file(name, card), "")?;
        }
        for (_, name) in FILES.into_iter().filter(|(kind, _)| *kind != bus) {
            match fs::remove_file(self.bus_file(name, card)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn bus_file(&self, name: &str, card: usize) -> PathBuf {
        self.directory().join(format!("{name}-{card}"))
    }
}
