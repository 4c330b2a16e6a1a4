//! Descriptors of our own, in a process that is not ours. The application may fork: a child that keeps an arena's descriptor
//! keeps its host memory, after we gave that back and after this process ended, and one that keeps a lock keeps that. And it
//! may close whatever is open, and open files of its own under the same numbers: then nothing of ours may read, write or close
//! there. So each is known by its number and by what it leads to, is looked at before each use, and is closed in a child.

#![expect(
    unsafe_code,
    reason = "descriptors are known by their numbers: the application may have closed them"
)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// So many are closed in a child: an arena takes one, a session three.
const PLACES: usize = 1024;

/// Ours begin here, where so many may be open.
const HIGH: u64 = 512;

/// What one leads to. Not for what shares one inode with all of its kind, as an eventfd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// A descriptor of ours.
#[derive(Debug)]
pub struct Own {
    number: RawFd,
    identity: Identity,
    place: Option<&'static Place>,
}

/// Where a child finds one: it may take no lock, since the thread that had it is not there any more.
#[derive(Debug)]
struct Place {
    /// -1: none; -2: being changed.
    number: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

const FREE: i32 = -1;
const CHANGING: i32 = -2;

static ALL: [Place; PLACES] =
    [const { Place { number: AtomicI32::new(FREE), device: AtomicU64::new(0), inode: AtomicU64::new(0) } };
        PLACES];

impl Own {
    /// Takes it, to a number that the application is not given next: it may close 0 to 2 and go on using them, or count on the
    /// lowest that is free. An error of `fstat` closes it.
    pub fn new(descriptor: OwnedFd) -> rustix::io::Result<Own> {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let high = (most / 2).clamp(3, HIGH) as RawFd;
        // Where there is none left it stays where it is, and is known by what it leads to all the same.
        let descriptor = rustix::io::fcntl_dupfd_cloexec(&descriptor, high).unwrap_or(descriptor);
        let identity = identity(rustix::fs::fstat(&descriptor)?);
        let take = |place: &&Place| {
            place.number.compare_exchange(FREE, CHANGING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let place = ALL.iter().find(take);
        let number = descriptor.into_raw_fd();
        if let Some(place) = place {
            place.device.store(identity.device, Ordering::Relaxed);
            place.inode.store(identity.inode, Ordering::Relaxed);
            place.number.store(number, Ordering::Release);
        }
        Ok(Own { number, identity, place })
    }

    /// The descriptor, if it is still ours: `EBADF` where the application has closed it.
    pub fn get(&self) -> rustix::io::Result<BorrowedFd<'_>> {
        still(self.number, self.identity).ok_or(Errno::BADF)
    }
}

/// Memory of `bytes` that has a descriptor and never changes its size. `EFBIG` where the application's
/// files may not be so large (`RLIMIT_FSIZE`): to try would end it with `SIGXFSZ`.
pub(crate) fn memory(name: &CStr, bytes: u64) -> rustix::io::Result<OwnedFd> {
    if getrlimit(Resource::Fsize).current.is_some_and(|most| most < bytes) {
        return Err(Errno::FBIG);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Some kernels want to be told that nobody runs it (`vm.memfd_noexec`), and those before 6.3 do not know that.
    let file = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL).or_else(|_| memfd_create(name, flags))?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.number.store(FREE, Ordering::Release);
        }
        if let Some(ours) = still(self.number, self.identity) {
            close(ours);
        }
    }
}

/// In a child of a fork, on its only thread: closes all that it inherited of ours.
pub(crate) fn leave_to_parent() {
    for place in &ALL {
        let number = place.number.load(Ordering::Acquire);
        let identity = Identity {
            device: place.device.load(Ordering::Relaxed),
            inode: place.inode.load(Ordering::Relaxed),
        };
        if number >= 0
            && let Some(ours) = still(number, identity)
        {
            close(ours);
        }
    }
}

fn identity(status: rustix::fs::Stat) -> Identity {
    Identity { device: status.st_dev, inode: status.st_ino }
}

/// The descriptor of that number, where it leads to that.
fn still<'a>(number: RawFd, expected: Identity) -> Option<BorrowedFd<'a>> {
    // SAFETY: not -1; whether it is open, and ours, is what is asked, and it is used for nothing before.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let status = rustix::fs::fstat(descriptor).ok()?;
    (identity(status) == expected).then_some(descriptor)
}

fn close(ours: BorrowedFd<'_>) {
    // SAFETY: it leads to what we opened and nobody else has, so it is ours to close; nothing uses it afterwards.
    unsafe { rustix::io::close(ours.as_raw_fd()) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn what_the_application_closed_is_not_ours_any_more_and_stays_open_when_it_opened_it_again() {
        let (read, write) = pipe().unwrap();
        let ours = Own::new(read).unwrap();
        let number = ours.get().unwrap().as_raw_fd();
        // It closes it, and has a file of its own under the number.
        let (others, _write) = pipe().unwrap();
        // SAFETY: the number is ours alone.
        assert_eq!(unsafe { libc::dup2(others.as_raw_fd(), number) }, number);
        assert_eq!(ours.get().unwrap_err(), Errno::BADF);
        drop(ours);
        // SAFETY: made by `dup2` above.
        let again = unsafe { BorrowedFd::borrow_raw(number) };
        assert_eq!(
            identity(rustix::fs::fstat(again).unwrap()),
            identity(rustix::fs::fstat(&others).unwrap())
        );
        close(again);
        drop(write);
    }

    #[test]
    fn one_that_is_dropped_is_closed_and_its_place_is_free() {
        let (read, write) = pipe().unwrap();
        let ours = Own::new(write).unwrap();
        let (number, place) = (ours.number, ours.place.unwrap());
        assert_eq!(place.number.load(Ordering::Relaxed), number);
        drop(ours);
        // The other end sees the end.
        assert_eq!(rustix::io::read(read.as_fd(), &mut [0_u8; 1]).unwrap(), 0);
        assert_ne!(place.number.load(Ordering::Relaxed), number);
    }
}
