//! The engine's streams and events in the application's context, and the copies on them.

#![expect(unsafe_code, reason = "the driver is called")]

use std::ffi::c_void;

use crate::cuda::sys::{self, CUmemorytype};
use crate::cuda::{CUresult, EVENT_DISABLE_TIMING};
use crate::device::tiles;
use crate::driver::driver;
use crate::memory::arrays::Box3;
use crate::turn::calm::Calm;

/// `CU_STREAM_NON_BLOCKING`: does not synchronise with the legacy stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_BLOCKING_SYNC`: a thread that waits sleeps.
const BLOCKING_SYNC: u32 = 1;

/// A non-blocking stream of the engine's own.
#[derive(Debug)]
pub struct Stream(sys::CUstream);

impl Stream {
    /// In the current context.
    pub fn new(_calm: &Calm) -> Result<Stream, CUresult> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: `stream` is where the handle goes.
        unsafe { driver().cuStreamCreate(&raw mut stream, NON_BLOCKING) }.result()?;
        Ok(Stream(stream))
    }

    /// The driver's handle.
    pub const fn handle(&self) -> sys::CUstream {
        self.0
    }

    /// Starts a copy to pinned host memory.
    ///
    /// # Safety
    /// Both ranges stay mapped, and the host's is used by nobody, until an event after the copy is complete.
    pub unsafe fn copy_out(&self, host: *mut c_void, device: u64, bytes: u64) -> Result<(), CUresult> {
        // SAFETY: the caller's promise.
        unsafe { driver().cuMemcpyDtoHAsync_v2(host, device, bytes as usize, self.0) }.result()
    }

    /// Starts a copy from pinned host memory.
    ///
    /// # Safety
    /// As [`Stream::copy_out`], with the device's range in place of the host's.
    pub unsafe fn copy_in(&self, device: u64, host: *const c_void, bytes: u64) -> Result<(), CUresult> {
        // SAFETY: the caller's promise.
        unsafe { driver().cuMemcpyHtoDAsync_v2(device, host, bytes as usize, self.0) }.result()
    }

    /// Starts a copy of a box of an array to pinned host memory.
    ///
    /// # Safety
    /// As [`Stream::copy_out`]: the array has its memory meanwhile.
    pub unsafe fn copy_box_out(&self, host: *mut c_void, cut: &Box3) -> Result<(), CUresult> {
        // SAFETY: the caller's promise.
        unsafe {
            self.copy_box(cut, |copy| {
                (*copy).srcMemoryType = CUmemorytype::CU_MEMORYTYPE_ARRAY;
                (*copy).srcArray = tiles::array(cut.array);
                [(*copy).srcXInBytes, (*copy).srcY, (*copy).srcZ] = cut.at.map(|at| at as usize);
                (*copy).dstMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
                (*copy).dstHost = host;
                [(*copy).dstPitch, (*copy).dstHeight] = cut.pitch.map(|pitch| pitch as usize);
            })
        }
    }

    /// Starts a copy of a box of an array from pinned host memory.
    ///
    /// # Safety
    /// As [`Stream::copy_box_out`].
    pub unsafe fn copy_box_in(&self, cut: &Box3, host: *const c_void) -> Result<(), CUresult> {
        // SAFETY: the same.
        unsafe {
            self.copy_box(cut, |copy| {
                (*copy).dstMemoryType = CUmemorytype::CU_MEMORYTYPE_ARRAY;
                (*copy).dstArray = tiles::array(cut.array);
                [(*copy).dstXInBytes, (*copy).dstY, (*copy).dstZ] = cut.at.map(|at| at as usize);
                (*copy).srcMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
                (*copy).srcHost = host;
                [(*copy).srcPitch, (*copy).srcHeight] = cut.pitch.map(|pitch| pitch as usize);
            })
        }
    }

    /// `ends` names both ends, in a description that is zero.
    unsafe fn copy_box(
        &self,
        cut: &Box3,
        ends: impl FnOnce(*mut sys::CUDA_MEMCPY3D),
    ) -> Result<(), CUresult> {
        let mut copy = std::mem::MaybeUninit::<sys::CUDA_MEMCPY3D>::zeroed();
        ends(copy.as_mut_ptr());
        // SAFETY: what is left zero are numbers and pointers that are not looked at; the rest is the caller's promise.
        unsafe {
            let copy = copy.as_mut_ptr();
            [(*copy).WidthInBytes, (*copy).Height, (*copy).Depth] = cut.extents.map(|extent| extent as usize);
            driver().cuMemcpy3DAsync_v2(copy, self.0).result()
        }
    }

    /// Starts to fill with zeros.
    ///
    /// # Safety
    /// The range (a multiple of four) stays mapped and is used by nobody until an event after the memset is complete.
    pub unsafe fn clear(&self, device: u64, bytes: u64) -> Result<(), CUresult> {
        // SAFETY: the caller's promise.
        unsafe { driver().cuMemsetD32Async(device, 0, (bytes / 4) as usize, self.0) }.result()
    }

    /// Waits until all that was started on the stream is finished.
    pub fn synchronize(&self) -> Result<(), CUresult> {
        // SAFETY: the stream lives until it is closed.
        unsafe { driver().cuStreamSynchronize(self.0) }.result()
    }

    /// Destroys the stream.
    pub fn close(self, _calm: &Calm) {
        // SAFETY: it is not used after this.
        let _ = unsafe { driver().cuStreamDestroy_v2(self.0) };
    }
}

/// An event without timing.
#[derive(Debug)]
pub struct Event(sys::CUevent);

impl Event {
    /// In the current context.
    pub fn new(_calm: &Calm) -> Result<Event, CUresult> {
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` is where the handle goes.
        unsafe { driver().cuEventCreate(&raw mut event, EVENT_DISABLE_TIMING | BLOCKING_SYNC) }.result()?;
        Ok(Event(event))
    }

    /// Completes when all that was started on `stream` until now is finished.
    pub fn record(&self, stream: &Stream) -> Result<(), CUresult> {
        // SAFETY: both live until they are closed.
        unsafe { driver().cuEventRecord(self.0, stream.0) }.result()
    }

    /// Whether it is complete.
    pub fn done(&self) -> Result<bool, CUresult> {
        // SAFETY: the event lives until it is closed.
        match unsafe { driver().cuEventQuery(self.0) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => other.result().map(|()| true),
        }
    }

    /// Waits until it is complete.
    pub fn wait(&self) -> Result<(), CUresult> {
        // SAFETY: the event lives until it is closed.
        unsafe { driver().cuEventSynchronize(self.0) }.result()
    }

    /// Destroys the event.
    pub fn close(self) {
        // SAFETY: it is not used after this.
        let _ = unsafe { driver().cuEventDestroy_v2(self.0) };
    }
}
