//! Where a process has `/dev/nvidia-uvm` open, whether it has managed memory, and which cards there are: by the numbers of the
//! device (or of the file that stands for it), since its name may be another in a container. Nothing of the process is opened here,
//! nor asked of its file systems.

use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use nvshare_common::ids::DeviceId;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use super::stand_in;
use crate::observer::find::line;

/// How many descriptors of a process are looked at: the driver opens its own early.
const MOST: usize = 4096;
/// The driver maps so much of the device for itself; what is beyond is managed memory.
const OWN_BYTES: u64 = 2 << 20;
/// More cards than that are not told apart.
const CARDS: usize = 16;

/// Where these things are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The module's device.
    Device {
        /// `/proc/devices`: the major number of the module.
        devices: PathBuf,
        /// The minor number of `/dev/nvidia-uvm`.
        minor: u32,
        /// `/proc/driver/nvidia/gpus`.
        cards: PathBuf,
    },
    /// What stands for the module.
    File(PathBuf),
}

/// What descriptors of it have in common.
enum Mark {
    /// The numbers of the device.
    Device(u32, u32),
    /// The file system and inode.
    File(String),
}

/// A descriptor of the device in a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// Its number there.
    pub(super) descriptor: RawFd,
    /// Its file system and inode as `/proc/PID/maps` writes them.
    file: String,
}

impl Place {
    /// Whether the module is loaded.
    pub(super) fn is_there(&self) -> bool {
        self.mark().is_some()
    }

    fn mark(&self) -> Option<Mark> {
        match self {
            Place::Device { devices, minor, .. } => {
                Some(Mark::Device(major(&fs::read_to_string(devices).ok()?)?, *minor))
            }
            Place::File(path) => {
                let found = statx(CWD, path, AtFlags::empty(), StatxFlags::INO).ok()?;
                Some(Mark::File(file(&found)))
            }
        }
    }

    /// The process's descriptors of the device.
    pub(super) fn open(&self, pid: u32) -> Vec<Open> {
        let (Some(mark), Ok(entries)) = (self.mark(), fs::read_dir(format!("/proc/{pid}/fd"))) else {
            return Vec::new();
        };
        let descriptors = entries.flatten().take(MOST);
        let numbers = descriptors.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
        let mut open: Vec<Open> = numbers.filter_map(|number| opened(pid, number, &mark)).collect();
        open.sort_by_key(|open| open.descriptor);
        open
    }

    /// Whether this descriptor of the process still is the device's.
    pub(super) fn is_open(&self, pid: u32, descriptor: RawFd) -> bool {
        self.mark().is_some_and(|mark| opened(pid, descriptor, &mark).is_some())
    }

    /// Every card of the node that says who it is.
    pub(super) fn cards(&self) -> Vec<DeviceId> {
        let cards = match self {
            Place::Device { cards, .. } => cards,
            Place::File(path) => return stand_in::cards(path),
        };
        let Ok(entries) = fs::read_dir(cards) else { return Vec::new() };
        let texts =
            entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("information")).ok());
        let mut cards: Vec<DeviceId> = texts.filter_map(|text| card(&text)).take(CARDS).collect();
        cards.sort_unstable();
        cards
    }
}

fn opened(pid: u32, descriptor: RawFd, mark: &Mark) -> Option<Open> {
    let path = format!("/proc/{pid}/fd/{descriptor}");
    // A socket or a pipe is not asked about.
    if !fs::read_link(&path).ok()?.starts_with("/") {
        return None;
    }
    // What the kernel knows: a file system that does not answer is not waited for.
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE | StatxFlags::INO).ok()?;
    let file = file(&found);
    let is_it = match mark {
        Mark::Device(major, minor) => {
            FileType::from_raw_mode(found.stx_mode.into()) == FileType::CharacterDevice
                && (found.stx_rdev_major, found.stx_rdev_minor) == (*major, *minor)
        }
        Mark::File(marked) => file == *marked,
    };
    is_it.then_some(Open { descriptor, file })
}

/// As `/proc/PID/maps` writes it.
fn file(found: &Statx) -> String {
    format!("{:02x}:{:02x} {}", found.stx_dev_major, found.stx_dev_minor, found.stx_ino)
}

/// Whether a process with these descriptors has managed memory, by the text of its `/proc/PID/maps`: each piece is a mapping
/// of the device.
pub(super) fn is_managed(maps: &str, open: &[Open]) -> bool {
    let lines = maps.lines().filter_map(line);
    let of_it = lines.filter(|line| open.iter().any(|open| open.file == line.file));
    let bytes = of_it.filter_map(|line| {
        let (from, to) = line.place.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        number(to)?.checked_sub(number(from)?)
    });
    bytes.fold(0, u64::saturating_add) > OWN_BYTES
}

/// Reads the managed mappings of a process.
pub(super) fn has_managed(pid: u32, open: &[Open]) -> bool {
    fs::read(Path::new("/proc").join(pid.to_string()).join("maps"))
        .is_ok_and(|maps| is_managed(&String::from_utf8_lossy(&maps), open))
}

/// Reads `/proc/devices`.
fn major(devices: &str) -> Option<u32> {
    devices.lines().take_while(|line| !line.starts_with("Block")).find_map(|line| {
        let (number, name) = line.trim_start().split_once(' ')?;
        (name == "nvidia-uvm").then(|| number.parse().ok())?
    })
}

/// Reads a card's `information`.
fn card(information: &str) -> Option<DeviceId> {
    let uuid = information.lines().find_map(|line| line.strip_prefix("GPU UUID:"))?;
    uuid.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use tempfile::TempDir;

    use super::*;

    const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n238 nvidia-uvm\n511 nvidia-caps\n\nBlock devices:\n  9 nvidia-uvm\n";

    #[test]
    fn the_module_is_found_by_its_major_number() {
        assert_eq!(major(DEVICES), Some(238));
        assert_eq!(major("Character devices:\n 195 nvidia\n\nBlock devices:\n 238 nvidia-uvm\n"), None);
        assert_eq!(major(""), None);
    }

    #[test]
    fn a_descriptor_is_found_by_the_numbers_of_its_device_whatever_its_name() {
        let directory = TempDir::with_prefix("nvshare-devices-").unwrap();
        let devices = directory.path().join("devices");
        fs::write(&devices, "Character devices:\n  1 nvidia-uvm\n").unwrap();
        // The device of zeros, as if it were the module's.
        let place = Place::Device { devices, minor: 5, cards: "/nonexistent".into() };
        let (pid, before) = (std::process::id(), place.open(std::process::id()).len());
        let (zero, null) = (File::open("/dev/zero").unwrap(), File::open("/dev/null").unwrap());
        let open = place.open(pid);
        // Other tests may have one open, too.
        assert!(open.len() > before.min(open.len() - 1));
        assert!(open.iter().any(|open| open.descriptor == zero.as_raw_fd()));
        assert!(open.iter().all(|open| open.descriptor != null.as_raw_fd()));
        assert!(place.is_open(pid, zero.as_raw_fd()) && !place.is_open(pid, null.as_raw_fd()));
        let nowhere = Place::Device { devices: "/nonexistent".into(), minor: 5, cards: PathBuf::new() };
        assert!(place.is_there() && !nowhere.is_there());
        assert_eq!(nowhere.open(pid), []);
    }

    #[test]
    fn a_descriptor_of_the_file_that_stands_for_the_module_is_found_by_its_inode() {
        let directory = TempDir::with_prefix("nvshare-devices-").unwrap();
        let path = directory.path().join("file");
        let (place, pid) = (Place::File(path.clone()), std::process::id());
        assert!(!place.is_there() && place.open(pid).is_empty());
        let (own, other) =
            (File::create(&path).unwrap(), File::create(directory.path().join("other")).unwrap());
        let open = place.open(pid);
        let [Open { descriptor, .. }] = open[..] else { panic!("{open:?}") };
        assert_eq!(descriptor, own.as_raw_fd());
        assert!(place.is_there() && !place.is_open(pid, other.as_raw_fd()));
        drop(own);
        assert!(!place.is_open(pid, descriptor));
    }

    #[test]
    fn managed_memory_is_what_is_mapped_of_the_device_beyond_the_drivers_own_piece() {
        let open = [Open { descriptor: 9, file: "00:05 515".to_owned() }];
        let own = "204a00000-204c00000 rw-s 204a00000 00:05 515    /dev/nvidia-uvm\n";
        let piece = "7fba56000000-7fbad6000000 rw-s 7fba56000000 00:05 515    /dev/somewhere\n";
        let other = "7fba56000000-7fbad6000000 rw-s 00000000 00:05 516    /dev/nvidia-uvm\n";
        assert!(!is_managed(own, &open));
        assert!(is_managed(&format!("{own}{piece}"), &open));
        assert!(!is_managed(&format!("{own}{other}"), &open));
        assert!(!is_managed(&format!("{own}{piece}"), &[]));
    }

    #[test]
    fn cards_are_read_with_their_uuids() {
        let directory = TempDir::with_prefix("nvshare-cards-").unwrap();
        for (name, text) in [
            (
                "0000:01:00.0",
                "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-01234567-89ab-cdef-1032-547698badcfe\n",
            ),
            (
                "0000:02:00.0",
                "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-????????-????-????-????-????????????\n",
            ),
        ] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("information"), text).unwrap();
        }
        let place = Place::Device { devices: PathBuf::new(), minor: 0, cards: directory.path().to_owned() };
        let [card] = place.cards()[..] else { panic!("{:?}", place.cards()) };
        assert_eq!(card.to_string(), "GPU-01234567-89ab-cdef-1032-547698badcfe");
    }
}
