//! The calls of NVIDIA's module that make it count for us (`/dev/nvidia-uvm-tools`). All else stands above [`Door`], and is tested
//! with another one.
//!
//! Numbers and structures are those of `uvm_ioctl.h` and `uvm_types.h` in the public kernel modules, from driver 515 on.

#![expect(unsafe_code, reason = "the module takes structures of its own")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use nvshare_common::ids::DeviceId;

use super::page::{CPU_FAULTS, FAULTS, Page, TO_DEVICE, TO_HOST};

/// A bit for each that is read here.
const WANTED: u64 = 1 << TO_DEVICE | 1 << TO_HOST | 1 << CPU_FAULTS | 1 << FAULTS;

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

    /// Counts from now on what happens in the VA space of `space`, a descriptor of `/dev/nvidia-uvm`: on one device, or
    /// everywhere. What is answered with the page keeps the VA space alive, with all memory in it, until it is closed.
    fn count(&self, space: BorrowedFd<'_>, device: Option<DeviceId>)
    -> Result<(OwnedFd, Arc<Page>), Refused>;
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
        device: Option<DeviceId>,
    ) -> Result<(OwnedFd, Arc<Page>), Refused> {
        let page = Page::new().map_err(|error| Refused::Call("no memory for counters", error))?;
        let tracker = self.open().map_err(|error| Refused::Call("cannot open it", error))?;
        let mut init = InitEventTracker {
            control_buffer: page.address(),
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
        Ok((tracker, Arc::new(page)))
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_not_the_module_is_refused_with_the_call() {
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let door = Module { path: "/dev/zero".into() };
        door.knock().unwrap();
        let refused = door.count(zero.as_fd(), None).err().expect("refused").to_string();
        assert!(refused.contains("INIT_EVENT_TRACKER"), "{refused}");
        assert!(Module { path: "/nonexistent".into() }.knock().is_err());
    }
}
