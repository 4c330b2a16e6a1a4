//! What may use this process's device memory without a call that we see: other hardware by DMA (network cards, storage,
//! GDRCopy), which finds what was registered by physical address, and engines of the card that have libraries of their own
//! (video, optical flow, ray tracing). While one is there nothing of this process is moved.
//!
//! It is looked for when memory is about to leave, and while memory is out: what is opened then wants it back. A library is
//! met already when it is opened (`resolve`): the thread waits until everything is in, and from then on nothing leaves.

use std::ffi::CStr;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{config, gate, start};

/// Device files of hardware that keeps physical addresses.
const DEVICES: &[&str] = &["/dev/infiniband/uverbs", "/dev/gdrdrv", "/dev/nvidia-fs", "/dev/hfi1"];
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
    /// Its name, for people.
    pub name: String,
}

/// Who may use the memory of this process besides it, where it is not said that such programs may be moved all the same
/// (`NVSHARE_SWAP_BESIDE_DMA`).
pub fn user() -> Option<User> {
    if config::get().swap_beside_dma {
        return None;
    }
    open_below(Path::new("/proc/self/fd"))
        .map(|name| User { reason: "dma", name })
        .or_else(|| {
            let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
            loaded(&maps).map(|name| User { reason: "engine", name })
        })
        .or_else(|| is_opening().then(|| User { reason: "engine", name: "a library being opened".into() }))
}

/// The application is about to open the library `name`. Where that may use memory on its own, everything is brought in
/// before, and nothing leaves until it was looked for.
pub(crate) fn opening(name: &CStr) {
    if !start::active() || start::is_engine() || config::get().swap_beside_dma {
        return;
    }
    let name = name.to_bytes();
    let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
    if [ENGINES, OPENERS].into_iter().flatten().any(|known| name.starts_with(known.as_bytes())) {
        OPENED.store(now().max(1), Ordering::SeqCst);
        drop(gate::pass());
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

fn open_below(descriptors: &Path) -> Option<String> {
    let open = std::fs::read_dir(descriptors).ok()?.flatten();
    let targets =
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    targets.into_iter().find(|target| DEVICES.iter().any(|device| target.starts_with(device)))
}

/// The file of an engine's library among those that are mapped.
fn loaded(maps: &str) -> Option<String> {
    let files = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    files
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or(path);
            ENGINES.iter().any(|engine| name.starts_with(engine))
        })
        .map(str::to_owned)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_that_keeps_physical_addresses_is_found_among_other_files() {
        let directory = std::env::temp_dir().join(format!("nvshare-dma-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let link = |name: &str, target: &str| {
            let _ = std::fs::remove_file(directory.join(name));
            std::os::unix::fs::symlink(target, directory.join(name)).unwrap();
        };
        link("0", "/dev/null");
        link("1", "/dev/infiniband/rdma_cm");
        link("2", "/dev/nvidia-uvm");
        assert_eq!(open_below(&directory), None);
        for device in ["/dev/infiniband/uverbs0", "/dev/nvidia-fs3", "/dev/gdrdrv"] {
            link("3", device);
            assert_eq!(open_below(&directory).as_deref(), Some(device));
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn an_engine_is_known_by_its_mapped_library_and_not_by_others() {
        let line = |path: &str| format!("7f00-7f10 r-xp 00000000 fe:01 12     {path}\n");
        let others =
            line("/usr/lib/libcuda.so.1") + &line("/usr/lib/libibverbs.so.1") + "7f20-7f30 rw-p 0 0:0 0\n";
        assert_eq!(loaded(&others), None);
        let engine = "/usr/lib/x86_64-linux-gnu/libnvcuvid.so.580.159.04";
        assert_eq!(loaded(&(others + &line(engine))).as_deref(), Some(engine));
    }
}
