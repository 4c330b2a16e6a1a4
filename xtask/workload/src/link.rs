//! How fast the link is: large pinned copies, both ways at once.

#![expect(unsafe_code, reason = "the driver is called")]

use std::time::Instant;

use anyhow::{Context, Result};
use cudarc::driver::result::{self, stream::StreamKind};
use serde::Serialize;

use crate::gpu::{Buffer, Gpu};
use crate::options::Memory;

const BYTES: u64 = 64 << 20;
const ROUNDS: u64 = 32;

/// What is found.
#[derive(Serialize)]
pub(crate) struct Link {
    /// Each way, while the other way is busy too.
    bytes_per_second: f64,
    /// Memory that the device has free.
    free_bytes: u64,
}

/// Measures the link of a device.
pub(crate) fn measure(ordinal: i32) -> Result<Link> {
    let gpu = Gpu::open(ordinal, 0)?;
    let (free, _) = result::mem_get_info()?;
    let buffers = [Buffer::allocate(BYTES, Memory::Device)?, Buffer::allocate(BYTES, Memory::Device)?];
    let host = [Pinned::allocate()?, Pinned::allocate()?];
    let streams =
        [result::stream::create(StreamKind::NonBlocking)?, result::stream::create(StreamKind::NonBlocking)?];
    gpu.fill(buffers[0].address, BYTES / 8, 1, 0)?;
    gpu.synchronize()?;
    let mut start = Instant::now();
    for round in 0..=ROUNDS {
        if round == 1 {
            // The first round was for warming up.
            streams.iter().try_for_each(|stream| wait(*stream))?;
            start = Instant::now();
        }
        // SAFETY: buffers and host memory have BYTES bytes each and live until both streams were waited for.
        unsafe {
            let to_host = std::slice::from_raw_parts_mut(host[0].0.cast::<u8>(), BYTES as usize);
            let to_device = std::slice::from_raw_parts(host[1].0.cast::<u8>(), BYTES as usize);
            result::memcpy_dtoh_async(to_host, buffers[0].address, streams[0])?;
            result::memcpy_htod_async(buffers[1].address, to_device, streams[1])?;
        }
    }
    streams.iter().try_for_each(|stream| wait(*stream))?;
    let seconds = start.elapsed().as_secs_f64();
    for stream in streams {
        // SAFETY: the stream is idle and used nowhere else.
        unsafe { result::stream::destroy(stream) }?;
    }
    Ok(Link { bytes_per_second: (ROUNDS * BYTES) as f64 / seconds, free_bytes: free as u64 })
}

fn wait(stream: cudarc::driver::sys::CUstream) -> Result<()> {
    // SAFETY: the stream was created above and is destroyed at the end only.
    unsafe { result::stream::synchronize(stream) }.context("a copy failed")
}

/// Pinned host memory.
struct Pinned(*mut std::ffi::c_void);

impl Pinned {
    fn allocate() -> Result<Pinned> {
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_host(BYTES as usize, 0) }.context("cannot pin host memory")?;
        // SAFETY: that many bytes lie there.
        unsafe { address.write_bytes(0, BYTES as usize) };
        Ok(Pinned(address))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the address came from malloc_host, and no copy is under way.
        let _ = unsafe { result::free_host(self.0) };
    }
}
