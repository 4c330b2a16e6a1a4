//! The only unsafe code of the socket: a client's counter page, mapped for reading; and one socket option that rustix does
//! not have.

#![expect(unsafe_code, reason = "a client's page of counters is mapped, and read as shared words")]

use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use nvshare_common::counters::{Counters, PAGE_BYTES};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Why a descriptor is no counter page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// None came with `Hello`.
    #[error("no counter page came with its hello")]
    Absent,
    /// It could be truncated, and reading it would then kill the agent.
    #[error("its counter page is not a memfd sealed against shrinking and growing")]
    Unsealed,
    /// Another size.
    #[error("its counter page has {0} bytes, expected {PAGE_BYTES}")]
    Size(i64),
    /// The system refused.
    #[error("its counter page cannot be mapped: {0}")]
    Map(Errno),
}

/// A client's counters; they stay readable after its death.
#[derive(Debug)]
pub struct CounterPage(NonNull<Counters>);

// SAFETY: the mapping belongs to this value alone, and everything in it is atomic.
unsafe impl Send for CounterPage {}
// SAFETY: as above.
unsafe impl Sync for CounterPage {}

impl CounterPage {
    /// Maps the page, read-only, once it is sure that nobody can take it away.
    pub fn map(descriptor: impl AsFd) -> Result<CounterPage, PageError> {
        let seals = fcntl_get_seals(&descriptor).map_err(|_| PageError::Unsealed)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(PageError::Unsealed);
        }
        let size = fstat(&descriptor).map_err(PageError::Map)?.st_size;
        if size != PAGE_BYTES as i64 {
            return Err(PageError::Size(size));
        }
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let address = unsafe {
            mmap(std::ptr::null_mut(), PAGE_BYTES, ProtFlags::READ, MapFlags::SHARED, descriptor, 0)
        };
        let address = address.map_err(PageError::Map)?;
        NonNull::new(address.cast()).map(CounterPage).ok_or(PageError::Map(Errno::FAULT))
    }
}

impl Deref for CounterPage {
    type Target = Counters;
    fn deref(&self) -> &Counters {
        // SAFETY: the mapping is a page long, longer than the counters and aligned for them, and lives as long as `self`;
        // its seals keep it from shrinking. All bit patterns are valid, and others change it only below the atomics that
        // it consists of; nothing here stores to it.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for CounterPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this size, and references into it cannot outlive `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
    }
}

/// `SO_PEERPIDFD` (Linux 6.5): a pidfd of the process that connected, whatever became of its number since.
pub(super) fn peer_pidfd(socket: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut descriptor: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option writes one int, for which there is room, and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut descriptor).cast(),
            &raw mut length,
        )
    };
    if result != 0 || descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: on success the kernel has made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `SO_PEERCRED`: the number of the process that connected in this pid namespace; 0 if it has none here, which rustix's type
/// for a number cannot be.
pub(super) fn peer_pid(socket: BorrowedFd<'_>) -> std::io::Result<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the option writes one `ucred`, for which there is room, and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(credentials.pid) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::sync::atomic::Ordering;

    fn memfd(bytes: usize, seals: SealFlags) -> OwnedFd {
        let file = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, bytes as u64).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn only_a_sealed_page_of_the_right_size_is_mapped() {
        let sealed = SealFlags::SHRINK | SealFlags::GROW;
        assert_eq!(CounterPage::map(memfd(PAGE_BYTES, SealFlags::SHRINK)).unwrap_err(), PageError::Unsealed);
        assert_eq!(CounterPage::map(memfd(100, sealed)).unwrap_err(), PageError::Size(100));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(CounterPage::map(file).unwrap_err(), PageError::Unsealed);
        let page = CounterPage::map(memfd(PAGE_BYTES, sealed)).unwrap();
        assert_eq!(page.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_the_client_writes_is_seen() {
        let file = memfd(PAGE_BYTES, SealFlags::SHRINK | SealFlags::GROW);
        let page = CounterPage::map(&file).unwrap();
        rustix::io::pwrite(&file, &7_u64.to_ne_bytes(), 0).unwrap();
        assert_eq!(page.calls().0[0], 7);
    }
}
