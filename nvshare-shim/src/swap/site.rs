//! Where the bytes of an extent are while it is on the card: at an address, or in an array, which has none and is copied by rows.

#![expect(unsafe_code, reason = "the driver is called")]

use std::ffi::c_void;
use std::sync::Arc;

use super::stream::Stream;
use crate::cuda::CUresult;
use crate::memory::arrays::Image;

/// See the module.
#[derive(Clone, Debug)]
pub(super) enum Site {
    /// From there on.
    At(u64),
    /// What is beyond its end is nobody's.
    Array(Arc<Image>),
}

impl Site {
    /// Starts to copy the bytes from `offset` on to pinned host memory.
    ///
    /// # Safety
    /// The extent is in place, and the host's range is used by nobody, until an event after the copy is complete.
    pub(super) unsafe fn copy_out(
        &self,
        stream: &Stream,
        offset: u64,
        host: *mut c_void,
        bytes: u64,
    ) -> Result<(), CUresult> {
        match self {
            // SAFETY: the caller's promise.
            Site::At(start) => unsafe { stream.copy_out(host, start + offset, bytes) },
            Site::Array(image) => image.boxes(offset, bytes).iter().try_for_each(|cut| {
                // SAFETY: the same; the box lies in the range.
                unsafe { stream.copy_box_out(host.byte_add((cut.offset - offset) as usize), cut) }
            }),
        }
    }

    /// Starts to copy them from there.
    ///
    /// # Safety
    /// As [`Site::copy_out`].
    pub(super) unsafe fn copy_in(
        &self,
        stream: &Stream,
        offset: u64,
        host: *const c_void,
        bytes: u64,
    ) -> Result<(), CUresult> {
        match self {
            // SAFETY: the caller's promise.
            Site::At(start) => unsafe { stream.copy_in(start + offset, host, bytes) },
            Site::Array(image) => image.boxes(offset, bytes).iter().try_for_each(|cut| {
                // SAFETY: the same; the box lies in the range.
                unsafe { stream.copy_box_in(cut, host.byte_add((cut.offset - offset) as usize)) }
            }),
        }
    }

    /// Starts to fill with zeros. Of an array every block has a copy on the host, but where that never had contents.
    ///
    /// # Safety
    /// As [`Site::copy_out`].
    pub(super) unsafe fn clear(&self, stream: &Stream, offset: u64, bytes: u64) -> Result<(), CUresult> {
        match self {
            // SAFETY: the caller's promise.
            Site::At(start) => unsafe { stream.clear(start + offset, bytes) },
            Site::Array(_) => Ok(()),
        }
    }
}
