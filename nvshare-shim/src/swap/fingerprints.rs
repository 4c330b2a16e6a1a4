//! Fingerprints taken on the device by the kernel of [`nvshare_common::fingerprint`]. Where it cannot be loaded everything
//! is copied.

#![expect(unsafe_code, reason = "the driver is called")]

use std::ffi::{CString, c_void};

use nvshare_common::fingerprint::{ENTRY, Fingerprint, Key};

use super::stream::Stream;
use crate::config::BLOCK_BYTES;
use crate::cuda::{CUresult, sys};
use crate::driver::driver;
use crate::turn::calm::Calm;

/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`.
const PORTABLE_MAPPED: u32 = 1 | 2;
/// Threads per block of memory. The largest number: an extent has few blocks for a large GPU (measured on an H200: 32
/// blocks at once 398 GB/s with 1024 threads, 273 with 512).
const THREADS: u32 = 1024;
/// The results begin behind the key.
const RESULTS_AT: usize = 64;
/// The length of the block that warms the kernel up.
const WARM_UP_BYTES: usize = 1024;

/// The loaded kernel, its key, and pinned memory for its results.
#[derive(Debug)]
pub struct Fingerprinter {
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// The key, then `slots` times room for `blocks` results.
    host: *mut c_void,
    device: u64,
    blocks: usize,
}

// SAFETY: handles and the pinned memory may be used from any thread; only the owner does.
unsafe impl Send for Fingerprinter {}

impl Fingerprinter {
    /// Loads the compiled kernel into the current context, with room for `slots` results of up to `blocks` blocks each, and runs it
    /// once: a driver that loads lazily would otherwise want memory in the worst moment.
    pub fn new(
        image: &[u64],
        stream: &Stream,
        slots: usize,
        blocks: usize,
        calm: &Calm,
    ) -> Result<Fingerprinter, CUresult> {
        let key = random_key().ok_or(CUresult::CUDA_ERROR_NOT_SUPPORTED)?;
        let entry = CString::new(ENTRY).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is a whole one of the driver's compiler.
        unsafe { driver().cuModuleLoadData(&raw mut module, image.as_ptr().cast()) }.result()?;
        let mut loaded = Fingerprinter {
            module,
            function: std::ptr::null_mut(),
            host: std::ptr::null_mut(),
            device: 0,
            blocks,
        };
        let ready =
            loaded.prepare(&entry, &key, RESULTS_AT + slots * blocks * size_of::<Fingerprint>(), stream);
        match ready {
            Ok(()) => Ok(loaded),
            Err(code) => {
                loaded.close(calm);
                Err(code)
            }
        }
    }

    fn prepare(&mut self, entry: &CString, key: &Key, bytes: usize, stream: &Stream) -> Result<(), CUresult> {
        let bytes = bytes.max(RESULTS_AT + size_of::<Fingerprint>() + WARM_UP_BYTES);
        // SAFETY: all pointers are to fields that outlive the calls; the pinned memory is freed in `close`.
        unsafe {
            driver().cuModuleGetFunction(&raw mut self.function, self.module, entry.as_ptr()).result()?;
            driver().cuMemHostAlloc(&raw mut self.host, bytes, PORTABLE_MAPPED).result()?;
            driver().cuMemHostGetDevicePointer_v2(&raw mut self.device, self.host, 0).result()?;
            self.host.cast::<[u64; 4]>().write(key.words());
            let warm_up = self.device + (RESULTS_AT + size_of::<Fingerprint>()) as u64;
            self.host.cast::<u8>().add(RESULTS_AT + size_of::<Fingerprint>()).write_bytes(0, WARM_UP_BYTES);
            self.launch(stream, 0, warm_up.next_multiple_of(16), 1, (WARM_UP_BYTES / 2) as u64)?;
        }
        stream.synchronize()
    }

    /// How many blocks may have their fingerprints taken at once.
    pub const fn most_blocks(&self) -> usize {
        self.blocks
    }

    /// Starts to take the fingerprints of `blocks` blocks at `start`, into results `slot`.
    ///
    /// # Safety
    /// The range stays mapped, and `slot` is not read or reused, until an event after the launch is complete.
    pub unsafe fn start(
        &self,
        stream: &Stream,
        slot: usize,
        start: u64,
        blocks: usize,
    ) -> Result<(), CUresult> {
        debug_assert!(blocks <= self.blocks);
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, slot, start, blocks, BLOCK_BYTES) }
    }

    unsafe fn launch(
        &self,
        stream: &Stream,
        slot: usize,
        start: u64,
        blocks: usize,
        bytes: u64,
    ) -> Result<(), CUresult> {
        let results = self.device + (RESULTS_AT + slot * self.blocks * size_of::<Fingerprint>()) as u64;
        let mut values = [start, blocks as u64, bytes, self.device, results];
        let mut parameters = values.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        // SAFETY: the parameters are those of the kernel and are copied by the call; the ranges they name are valid.
        unsafe {
            driver().cuLaunchKernel(
                self.function,
                blocks as u32,
                1,
                1,
                THREADS,
                1,
                1,
                0,
                stream.handle(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
    }

    /// The first `blocks` results of `slot`; an event after the launch is complete.
    pub fn results(&self, slot: usize, blocks: usize) -> Vec<Fingerprint> {
        debug_assert!(blocks <= self.blocks);
        // SAFETY: the memory holds that many results, and no kernel writes them any more.
        unsafe {
            let first = self
                .host
                .cast::<u8>()
                .add(RESULTS_AT + slot * self.blocks * size_of::<Fingerprint>())
                .cast::<Fingerprint>();
            (0..blocks).map(|index| first.add(index).read_volatile()).collect()
        }
    }

    /// Unloads the kernel.
    fn close(self, _calm: &Calm) {
        // SAFETY: no launch is under way, and nothing is used after this.
        unsafe {
            if !self.host.is_null() {
                let _ = driver().cuMemFreeHost(self.host);
            }
            let _ = driver().cuModuleUnload(self.module);
        }
    }
}

fn random_key() -> Option<Key> {
    for _ in 0..4 {
        let mut bytes = [0_u8; 32];
        // SAFETY: the buffer has that many bytes.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got != 32 {
            return None;
        }
        let words = bytes.as_chunks::<8>().0;
        if let Some(key) = Key::from_random([0, 1, 2, 3].map(|index: usize| u64::from_ne_bytes(words[index])))
        {
            return Some(key);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_another_one() {
        assert!(random_key().unwrap() != random_key().unwrap());
    }
}
