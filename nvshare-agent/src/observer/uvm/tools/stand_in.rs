//! A file in place of the module: simulated cards have one, in which what happens to managed memory is counted. It has places of
//! 1024 bytes. The first says which cards there are: a magic number, how many, their UUIDs. A process's descriptor stands at the
//! place that is its own: rows of the module's counters, one for everything, then one for each card.
//!
//! Who has a duplicate of such a descriptor keeps the process's memory, as trackers of the module do.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nvshare_common::ids::DeviceId;

use super::module::{Door, Refused};
use super::page::Page;

const MAGIC: [u8; 8] = *b"nvs--uvm";
/// The most cards that the file tells of.
const CARDS: usize = 8;
/// The counters of everything, or of a card.
const ROW: u64 = 80;
/// What the module answers about a descriptor that has no VA space.
const NO_SPACE: u32 = 0x16;

/// The file.
pub(super) struct StandIn {
    pub(super) path: PathBuf,
}

impl Door for StandIn {
    fn knock(&self) -> io::Result<()> {
        head(&self.path).map(drop)
    }

    fn count(
        &self,
        space: BorrowedFd<'_>,
        device: Option<DeviceId>,
    ) -> Result<(OwnedFd, Arc<Page>), Refused> {
        let failed = |what| move |error| Refused::Call(what, error);
        let mut tracker = File::from(space.try_clone_to_owned().map_err(failed("cannot keep it"))?);
        let place = tracker.stream_position().map_err(failed("cannot say where it stands"))?;
        let cards = head(&self.path).map_err(failed("cannot read it"))?;
        let row = match device {
            None => Some(0),
            Some(device) => cards.iter().position(|card| *card == device).map(|card| 1 + card as u64),
        };
        let row = row.filter(|_| place > 0).ok_or(Refused::Status(NO_SPACE))?;
        let page = Page::of(&tracker, place + row * ROW).map_err(failed("cannot map it"))?;
        Ok((tracker.into(), Arc::new(page)))
    }
}

/// The cards of which the file tells.
pub(super) fn cards(path: &Path) -> Vec<DeviceId> {
    head(path).unwrap_or_default()
}

fn head(path: &Path) -> io::Result<Vec<DeviceId>> {
    let mut head = [0; 16 + 16 * CARDS];
    File::open(path)?.read_exact_at(&mut head, 0)?;
    let (magic, rest) = head.split_at(8);
    let (count, uuids) = rest.split_at(8);
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no such file"));
    }
    let count = u64::from_ne_bytes(count.try_into().expect("eight bytes"));
    let uuids = uuids.as_chunks::<16>().0;
    Ok(uuids.iter().take(count.min(CARDS as u64) as usize).map(|uuid| DeviceId(*uuid)).collect())
}

#[cfg(test)]
mod tests {
    use std::io::SeekFrom;
    use std::os::fd::AsFd;

    use tempfile::NamedTempFile;

    use super::super::counts::Counts;
    use super::super::page::{CPU_FAULTS, FAULTS, TO_DEVICE, TO_HOST};
    use super::*;

    const OTHER: DeviceId = DeviceId([2; 16]);

    /// With two cards and one space, at the third place.
    fn file() -> (NamedTempFile, StandIn) {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * 1024).unwrap();
        let head = [&MAGIC[..], &2_u64.to_ne_bytes(), &[1; 16], &[2; 16]].concat();
        file.as_file().write_all_at(&head, 0).unwrap();
        let path = file.path().to_owned();
        (file, StandIn { path })
    }

    fn set(file: &NamedTempFile, row: u64, counter: usize, value: u64) {
        let at = 2 * 1024 + row * ROW + 8 * counter as u64;
        file.as_file().write_all_at(&value.to_ne_bytes(), at).unwrap();
    }

    #[test]
    fn a_descriptor_is_counted_where_it_stands_from_then_on_and_by_card() {
        let (file, door) = file();
        door.knock().unwrap();
        assert_eq!(cards(&door.path), [DeviceId([1; 16]), OTHER]);
        set(&file, 0, TO_DEVICE, 7);
        let mut own = File::open(file.path()).unwrap();
        own.seek(SeekFrom::Start(2 * 1024)).unwrap();
        let (_tracker, all) = door.count(own.as_fd(), None).unwrap();
        let (_tracker, card) = door.count(own.as_fd(), Some(OTHER)).unwrap();
        assert_eq!(all.begun(), Counts { to_device: 7, ..Counts::default() });
        for (counter, value) in [(TO_DEVICE, 9), (TO_HOST, 2), (CPU_FAULTS, 3), (FAULTS, 4)] {
            set(&file, 0, counter, value);
        }
        set(&file, 2, FAULTS, 5);
        assert_eq!(all.read(), Counts { to_device: 9, to_host: 2, cpu_faults: 3, faults: 4 });
        assert_eq!(card.read(), Counts { faults: 5, ..Counts::default() });
    }

    #[test]
    fn what_has_no_space_is_refused_and_so_is_what_is_no_such_file() {
        let (file, door) = file();
        let mut own = File::open(file.path()).unwrap();
        let refused = |own: &File, device| door.count(own.as_fd(), device).err().map(|why| why.to_string());
        assert_eq!(refused(&own, None).as_deref(), Some("the module answers 0x16"));
        own.seek(SeekFrom::Start(2 * 1024)).unwrap();
        assert_eq!(refused(&own, Some(DeviceId([3; 16]))).as_deref(), Some("the module answers 0x16"));
        own.seek(SeekFrom::Start(4 * 1024)).unwrap();
        assert!(refused(&own, None).is_some_and(|why| why.contains("cannot map it")));
        file.as_file().set_len(0).unwrap();
        assert!(door.knock().is_err() && cards(&door.path).is_empty());
    }
}
