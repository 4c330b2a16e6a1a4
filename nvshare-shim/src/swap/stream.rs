//! The engine's streams and events in the application's context, and the copies on them.

#![expect(unsafe_code, reason = "the driver is called")]

use std::ffi::c_void;

use crate::cuda::{CUresult, EVENT_DISABLE_TIMING, sys};
use crate::device::tiles;
use crate::driver::driver;
use crate::memory::arrays::Box3;
use crate::turn::calm::Calm;

/// `CU_STREAM_NON_BLOCKING`: does not synchronise with the legacy stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_BLOCKING_SYNC`: a thread that waits sleeps.
const BLOCKING_SYNC: u32 = 1;

const HOST: sys::CUmemorytype = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
const ARRAY: sys::CUmemorytype = sys::CUmemorytype::CU_MEMORYTYPE_ARRAY;

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
        // SAFETY: zeros are valid for each field; the array and the box are the caller's promise.
        unsafe {
            let mut copy = std::mem::zeroed::<sys::CUDA_MEMCPY3D>();
            (copy.srcMemoryType, copy.dstMemoryType) = (ARRAY, HOST);
            copy.srcArray = tiles::array(cut.array);
            [copy.srcXInBytes, copy.srcY, copy.srcZ] = cut.at.map(|at| at as usize);
            copy.dstHost = host;
            [copy.dstPitch, copy.dstHeight] = cut.pitch.map(|pitch| pitch as usize);
            self.copy_box(copy, cut)
        }
    }

    /// Starts a copy of a box of an array from pinned host memory.
    ///
    /// # Safety
    /// As [`Stream::copy_box_out`].
    pub unsafe fn copy_box_in(&self, cut: &Box3, host: *const c_void) -> Result<(), CUresult> {
        // SAFETY: the same.
        unsafe {
            let mut copy = std::mem::zeroed::<sys::CUDA_MEMCPY3D>();
            (copy.srcMemoryType, copy.dstMemoryType) = (HOST, ARRAY);
            copy.dstArray = tiles::array(cut.array);
            [copy.dstXInBytes, copy.dstY, copy.dstZ] = cut.at.map(|at| at as usize);
            copy.srcHost = host;
            [copy.srcPitch, copy.srcHeight] = cut.pitch.map(|pitch| pitch as usize);
            self.copy_box(copy, cut)
        }
    }

    unsafe fn copy_box(&self, mut copy: sys::CUDA_MEMCPY3D, cut: &Box3) -> Result<(), CUresult> {
        [copy.WidthInBytes, copy.Height, copy.Depth] = cut.extents.map(|extent| extent as usize);
        // SAFETY: the caller's promise.
        unsafe { driver().cuMemcpy3DAsync_v2(&raw const copy, self.0) }.result()
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
