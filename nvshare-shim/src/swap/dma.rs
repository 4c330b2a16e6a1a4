//! What may use this process's device memory without a call that we see: other hardware by DMA (network cards, storage,
//! GDRCopy), which finds what was registered by physical address, and engines of the card that have libraries of their own
//! (video, optical flow, ray tracing). While one is there nothing of this process is moved.
//!
//! It is looked for when memory is about to leave, and while memory is out: what is opened then wants it back. A library is
//! met already when it is opened (`exports`): the thread waits until everything is in, and from then on nothing leaves.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::proc::{self, Blind};
use crate::{config, life, turn};

/// Device files of hardware that keeps physical addresses; behind each name is a number, or nothing. What is before it depends
/// on the root and the mounts of who looks.
const DEVICES: &[&str] = &["/infiniband/uverbs", "/gdrdrv", "/nvidia-fs", "/hfi1_"];
/// Libraries of engines whose calls are not the driver's.
const ENGINES: &[&str] =
    &["libnvidia-encode.so", "libnvcuvid.so", "libnvidia-opticalflow.so", "libnvoptix.so"];
/// Libraries that open such hardware.
const OPENERS: &[&str] = &["libibverbs.so", "libgdrapi.so", "libcufile.so"];
/// How long a library that is being opened may take until it is seen by itself.
const OPENING: Duration = Duration::from_secs(5);

/// When a library of [`ENGINES`] or [`OPENERS`] was last about to be opened, in milliseconds; zero: never.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// What may use the memory, and under which heading that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// A label.
    pub reason: &'static str,
    /// For people: who is there, or why that cannot be known.
    pub said: String,
}

/// Who may use the memory of this process besides it, where it is not said that such programs may be moved all the same
/// (`NVSHARE_SWAP_BESIDE_DMA`). Where it cannot be seen that there is nobody, there may be somebody.
pub fn user() -> Option<User> {
    if config::get().swap_beside_dma {
        return None;
    }
    match seen() {
        Ok(None) if is_opening() => Some(User::there("engine", b"a library being opened")),
        Ok(seen) => seen,
        Err(blind) => {
            let said = format!("cannot look who else may use the memory ({blind})");
            Some(User { reason: "dma", said })
        }
    }
}

fn seen() -> Result<Option<User>, Blind> {
    if let Some(device) = proc::target(is_device)? {
        return Ok(Some(User::there("dma", &device)));
    }
    let maps = proc::maps()?;
    Ok(loaded(&maps).map(|(reason, file)| User::there(reason, file)))
}

impl User {
    fn there(reason: &'static str, name: &[u8]) -> User {
        User { reason, said: format!("{} is there", String::from_utf8_lossy(name)) }
    }
}

/// The application is about to open the library `name`. Where that may use memory on its own, everything is brought in
/// before, and nothing leaves until it was looked for.
pub(crate) fn opening(name: &CStr) {
    if !life::active() || life::is_engine() || config::get().swap_beside_dma {
        return;
    }
    let name = name.to_bytes();
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
    if [ENGINES, OPENERS].into_iter().flatten().any(|known| name.starts_with(known.as_bytes())) {
        OPENED.store(now().max(1), Ordering::SeqCst);
        drop(turn::pass());
    }
}

fn now() -> u64 {
    static SINCE: OnceLock<Instant> = OnceLock::new();
    SINCE.get_or_init(Instant::now).elapsed().as_millis() as u64
}

fn is_opening() -> bool {
    let opened = OPENED.load(Ordering::SeqCst);
    opened != 0 && u128::from(now().saturating_sub(opened)) < OPENING.as_millis()
}

/// Whether that is the path of such a device, whatever became of its name.
fn is_device(path: &[u8]) -> bool {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let behind = |device: &&str| {
        let at = path.windows(device.len()).rposition(|part| part == device.as_bytes())?;
        Some(&path[at + device.len()..])
    };
    DEVICES.iter().filter_map(behind).any(|number| number.iter().all(u8::is_ascii_digit))
}

/// The file of an engine's library, or of a device, among those that are mapped: what was registered lives as long as a
/// mapping of the device does, with its descriptor or without.
fn loaded(maps: &[u8]) -> Option<(&'static str, &[u8])> {
    let mut files = maps
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.iter().position(|byte| *byte == b'/').map(|at| &line[at..]));
    files.find_map(|path| {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let is_engine = ENGINES.iter().any(|engine| name.starts_with(engine.as_bytes()));
        let reason = if is_engine { "engine" } else { is_device(path).then_some("dma")? };
        Some((reason, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_that_keeps_physical_addresses_is_found_among_other_files() {
        for other in [
            "/dev/null",
            "/dev/infiniband/rdma_cm",
            "/dev/nvidia-uvm",
            "/home/me/gdrdrv.c",
            "/opt/nvidia-fs/log",
            "socket:[1]",
        ] {
            assert!(!is_device(other.as_bytes()), "{other}");
        }
        for device in [
            "/dev/infiniband/uverbs0",
            "/dev/nvidia-fs3",
            "/dev/gdrdrv",
            "/dev/hfi1_0",
            "/newroot/dev/infiniband/uverbs12",
            "/dev/infiniband/uverbs0 (deleted)",
        ] {
            assert!(is_device(device.as_bytes()), "{device}");
        }
    }

    #[test]
    fn an_engine_is_known_by_its_mapped_library_and_not_by_others() {
        let line = |path: &[u8]| [b"7f00-7f10 r-xp 00000000 fe:01 12     ", path, b"\n"].concat();
        let others = [
            line(b"/usr/lib/libcuda.so.1"),
            line(b"/tmp/caf\xe9"),
            line(b"/usr/lib/libibverbs.so.1"),
            b"7f20-7f30 rw-p 0 0:0 0\n".to_vec(),
        ]
        .concat();
        assert_eq!(loaded(&others), None);
        for (reason, file) in [
            ("engine", &b"/usr/lib/x86_64-linux-gnu/libnvcuvid.so.580.159.04"[..]),
            ("dma", b"/dev/infiniband/uverbs1"),
        ] {
            assert_eq!(loaded(&[others.clone(), line(file)].concat()), Some((reason, file)));
        }
    }
}
