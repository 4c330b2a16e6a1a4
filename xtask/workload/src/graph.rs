//! A step as frameworks capture work whose temporary memory is allocated in stream order: the graph has nodes that allocate and
//! free. What it allocates is the driver's own; everything goes through it, so that verifying the buffer verifies it as well.

#![expect(unsafe_code, reason = "the driver is called")]

use anyhow::{Context, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{
    CUdeviceptr, CUgraphExec, CUgraphInstantiate_flags,
    CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_GLOBAL,
};

use crate::gpu::Gpu;

/// In how many parts a buffer goes through what the graph allocates.
const PARTS: u64 = 4;

/// A step over one buffer. It must be dropped before the context.
pub(crate) struct Graph(CUgraphExec);

impl Graph {
    /// `word i += add`: part by part copied into memory that is allocated for that, computed over there, and copied back.
    pub(crate) fn of_step(gpu: &Gpu, buffer: CUdeviceptr, words: u64, add: u64) -> Result<Graph> {
        let part = words.div_ceil(PARTS);
        // SAFETY: the stream is the context's; graph and memory are used as long as they live, each copy inside both
        // the buffer and the part. Where a call fails the workload ends.
        unsafe {
            result::stream::begin_capture(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL)?;
            let scratch = result::malloc_async(gpu.stream, (8 * part) as usize)?;
            for first in (0..words).step_by(part as usize) {
                let (there, words) = (buffer + 8 * first, part.min(words - first));
                result::memcpy_dtod_async(scratch, there, (8 * words) as usize, gpu.stream)?;
                gpu.captured_step(scratch, words, add)?;
                result::memcpy_dtod_async(there, scratch, (8 * words) as usize, gpu.stream)?;
            }
            result::free_async(scratch, gpu.stream)?;
            let graph = result::stream::end_capture(gpu.stream)?;
            let executable = result::graph::instantiate(graph, CUgraphInstantiate_flags(0));
            result::graph::destroy(graph)?;
            Ok(Graph(executable.context("cannot instantiate a graph that allocates")?))
        }
    }

    /// Submits it.
    pub(crate) fn launch(&self, gpu: &Gpu) -> Result<()> {
        // SAFETY: both live.
        unsafe { result::graph::launch(self.0, gpu.stream) }.context("cannot launch a graph that allocates")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody launches it any more. Errors at the end are of no use to anybody.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}
