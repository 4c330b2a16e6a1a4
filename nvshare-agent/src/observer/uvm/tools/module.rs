//! The calls of NVIDIA's module that make it count for us (`/dev/nvidia-uvm-tools`), and the page that it counts on. All else
//! stands above [`Door`], and is tested with another one.
//!
//! Numbers and structures are those of `uvm_ioctl.h` and `uvm_types.h` in the public kernel modules, from driver 515 on.

#![expect(unsafe_code, reason = "the module takes structures of its own, and adds to a page of ours")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nvshare_common::ids::DeviceId;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::counts::Counts;

/// The counters of a page: `UvmCounterName`.
const TO_DEVICE: usize = 0;
const TO_HOST: usize = 1;
const CPU_FAULTS: usize = 2;
const FAULTS: usize = 9;
/// `UVM_TOTAL_COUNTERS`.
const COUNTERS: usize = 10;
/// A bit for each that is read here.
const WANTED: u64 = 1 << TO_DEVICE | 1 << TO_HOST | 1 << CPU_FAULTS | 1 << FAULTS;

/// At least what the kernel takes for one.
const PAGE: usize = 4096;

const INIT_EVENT_TRACKER: libc::Ioctl = 56;
const ENABLE_COUNTERS: libc::Ioctl = 60;
/// The same as the first; what it calls a queue is longer. Newer drivers have both.
const INIT_EVENT_TRACKER_V2: libc::Ioctl = 76;

/// `UVM_TOOLS_INIT_EVENT_TRACKER_PARAMS`; without a queue the control buffer takes counters.
#[repr(C, align(8))]
#[derive(Default)]
struct InitEventTracker {
    queue_buffer: u64,
    queue_buffer_size: u64,
    control_buffer: u64,
    processor: [u8; 16],
    all_processors: u32,
    uvm_descriptor: u32,
    status: u32,
}

const _: () = assert!(size_of::<InitEventTracker>() == 56);

/// `UVM_TOOLS_ENABLE_COUNTERS_PARAMS`.
#[repr(C, align(8))]
#[derive(Default)]
struct EnableCounters {
    flags: u64,
    status: u32,
}

/// Why the module does not count.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It says so: about this descriptor only.
    #[error("the module answers {0:#x}")]
    Status(u32),
    /// The calls are others, or may not be made.
    #[error("{0}: {1}")]
    Call(&'static str, io::Error),
}

/// Where one asks for counters.
pub(super) trait Door: Send {
    /// Whether anybody is there.
    fn knock(&self) -> io::Result<()>;

    /// Counts on `page` from now on what happens in the VA space of `space`, a descriptor of `/dev/nvidia-uvm`: on one device, or
    /// everywhere. What is answered keeps the VA space alive, with all memory in it, until it is closed.
    fn count(
        &self,
        space: BorrowedFd<'_>,
        page: &std::sync::Arc<Page>,
        device: Option<DeviceId>,
    ) -> Result<OwnedFd, Refused>;
}

/// The module.
pub(super) struct Module {
    /// `/dev/nvidia-uvm-tools`.
    pub(super) path: PathBuf,
}

impl Module {
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = libc::O_CLOEXEC | libc::O_NOCTTY;
        Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path)?.into())
    }
}

impl Door for Module {
    fn knock(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    fn count(
        &self,
        space: BorrowedFd<'_>,
        page: &std::sync::Arc<Page>,
        device: Option<DeviceId>,
    ) -> Result<OwnedFd, Refused> {
        let tracker = self.open().map_err(|error| Refused::Call("cannot open it", error))?;
        let mut init = InitEventTracker {
            control_buffer: page.0.as_ptr() as u64,
            processor: device.map_or([0; 16], |device| device.0),
            all_processors: u32::from(device.is_none()),
            uvm_descriptor: space.as_raw_fd() as u32,
            ..InitEventTracker::default()
        };
        // SAFETY: the structure is the call's (both of them), lives until it returns and holds no pointer but that to a page of
        // this process, which the module pins: it may be unmapped before the tracker is closed.
        let asked = unsafe { call(&tracker, INIT_EVENT_TRACKER_V2, &mut init) }.or_else(|error| match error
            .raw_os_error()
        {
            // SAFETY: as above.
            Some(libc::EINVAL | libc::ENOTTY) => unsafe { call(&tracker, INIT_EVENT_TRACKER, &mut init) },
            _ => Err(error),
        });
        asked.map_err(|error| Refused::Call("UVM_TOOLS_INIT_EVENT_TRACKER", error))?;
        if init.status != 0 {
            return Err(Refused::Status(init.status));
        }
        let mut enable = EnableCounters { flags: WANTED, ..EnableCounters::default() };
        // SAFETY: the structure is the call's, lives until it returns, and holds no pointer.
        let asked = unsafe { call(&tracker, ENABLE_COUNTERS, &mut enable) };
        asked.map_err(|error| Refused::Call("UVM_TOOLS_ENABLE_COUNTERS", error))?;
        if enable.status != 0 {
            return Err(Refused::Status(enable.status));
        }
        Ok(tracker)
    }
}

/// # Safety
/// The call takes a structure of this kind.
unsafe fn call<T>(tracker: &OwnedFd, number: libc::Ioctl, parameters: &mut T) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the caller vouches for the rest.
    match unsafe { libc::ioctl(tracker.as_raw_fd(), number, std::ptr::from_mut(parameters)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A page of counters. Shared memory: a child of ours that is on its way to another program takes no copy of it away.
pub(super) struct Page(NonNull<[AtomicU64; COUNTERS]>);

// SAFETY: the mapping belongs to this value alone, and everything in it is atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// All at zero.
    pub(super) fn new() -> io::Result<Page> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let address = unsafe {
            mmap_anonymous(std::ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        }?;
        NonNull::new(address.cast()).map(Page).ok_or_else(|| io::Error::other("mapped at zero"))
    }

    /// What it says now.
    pub(super) fn read(&self) -> Counts {
        let counter = |index: usize| self.counters()[index].load(Ordering::Relaxed);
        Counts {
            to_device: counter(TO_DEVICE),
            to_host: counter(TO_HOST),
            cpu_faults: counter(CPU_FAULTS),
            faults: counter(FAULTS),
        }
    }

    fn counters(&self) -> &[AtomicU64; COUNTERS] {
        // SAFETY: the mapping is a page long, longer than the counters and aligned for them, and lives as long as `self`. All
        // bit patterns are valid; the module adds to them atomically.
        unsafe { self.0.as_ref() }
    }

    /// Counts as the module would.
    #[cfg(test)]
    pub(super) fn set(&self, counts: Counts) {
        for (index, count) in [
            (TO_DEVICE, counts.to_device),
            (TO_HOST, counts.to_host),
            (CPU_FAULTS, counts.cpu_faults),
            (FAULTS, counts.faults),
        ] {
            self.counters()[index].store(count, Ordering::Relaxed);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and references into it cannot outlive `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_not_the_module_is_refused_with_the_call() {
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let door = Module { path: "/dev/zero".into() };
        door.knock().unwrap();
        let page = Arc::new(Page::new().unwrap());
        let refused = door.count(zero.as_fd(), &page, None).unwrap_err();
        assert!(refused.to_string().contains("INIT_EVENT_TRACKER"), "{refused}");
        assert_eq!(page.read(), Counts::default());
        assert!(Module { path: "/nonexistent".into() }.knock().is_err());
    }
}
