//! The counter page of this process (layout: [`nvshare_common::counters`]). It is a memfd that the agent maps too; where
//! none can be made it is ordinary memory and only the shim sees it. It comes into being with the first counted call,
//! so that no call is missing from it.

#![expect(unsafe_code, reason = "the page of counters is mapped, and shared with the agent")]

use std::os::fd::BorrowedFd;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use nvshare_common::counters::{Counters, PAGE_BYTES};
use nvshare_common::probe::Call;
use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::descriptors::{self, Own};
use crate::life;

static PAGE: AtomicPtr<Counters> = AtomicPtr::new(null_mut());
static FALLBACK: Counters = Counters::new();
static DESCRIPTOR: OnceLock<Option<Own>> = OnceLock::new();

/// The page.
#[inline]
pub fn page() -> &'static Counters {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        return make();
    }
    // SAFETY: once stored, the page is never unmapped, and all of it is atomics.
    unsafe { &*page }
}

/// The page's descriptor, for the agent; `None` where the page is ordinary memory.
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    page();
    DESCRIPTOR.get()?.as_ref()?.get().ok()
}

/// Counts a call of a probed function that is about to be made by this thread.
#[inline]
pub(crate) fn count(call: Call) {
    let page = page();
    let counts = if life::is_engine() { &page.engine } else { &page.application };
    counts[call as usize].fetch_add(1, Ordering::Release);
}

/// The same for a call that came through a hook: those are never the engine's.
#[inline]
pub(crate) fn count_hooked(call: Call) {
    page().application[call as usize].fetch_add(1, Ordering::Release);
}

/// In the child after a fork: its calls are not its parent's.
fn leave_to_parent() {
    PAGE.store((&raw const FALLBACK).cast_mut(), Ordering::Release);
}

#[cold]
fn make() -> &'static Counters {
    DESCRIPTOR.get_or_init(|| {
        life::in_child_of_a_fork(leave_to_parent);
        let (page, descriptor) = match share() {
            Ok((page, descriptor)) => (page, Some(descriptor)),
            Err(error) => {
                crate::log::warning!(
                    "cannot share the counter page ({error}): the agent will not see what is counted"
                );
                ((&raw const FALLBACK).cast_mut(), None)
            }
        };
        PAGE.store(page, Ordering::Release);
        descriptor
    });
    page()
}

fn share() -> rustix::io::Result<(*mut Counters, Own)> {
    let file = descriptors::memory(c"nvshare-counters", PAGE_BYTES as u64)?;
    // SAFETY: a fresh mapping that the kernel places touches nothing that exists.
    let page = unsafe {
        rustix::mm::mmap(
            null_mut(),
            PAGE_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    }?;
    // Through the mapping only from now on. Older kernels than 5.1 have no such seal.
    let _ = rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE);
    rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL)?;
    Ok((page.cast(), Own::new(file)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_a_sealed_file_that_shows_what_is_counted() {
        let before = page().application[Call::Advise as usize].load(Ordering::Relaxed);
        count(Call::Advise);
        let descriptor = descriptor().expect("memfd_create works here");
        let seals = rustix::fs::fcntl_get_seals(descriptor).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW));
        let mut bytes = [0; 8];
        let at = std::mem::offset_of!(Counters, application) + 8 * Call::Advise as usize;
        rustix::io::pread(descriptor, &mut bytes, at as u64).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), before + 1);
    }
}
