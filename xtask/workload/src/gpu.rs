//! The device as the workload uses it: a context, a stream, kernels, buffers. Plain driver API calls, nothing clever.

#![expect(unsafe_code, reason = "the driver is called")]

use std::cell::Cell;
use std::ffi::{CString, c_void};

use anyhow::{Context, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUfunction, CUmodule, CUstream};

use crate::options::Memory;
use crate::{mapped, pool};

const KERNELS: &str = include_str!("kernels.ptx");
const BLOCKS: u32 = 1024;
const THREADS: u32 = 256;

/// The primary context of one device, with the kernels loaded. Buffers must be dropped before it.
pub(crate) struct Gpu {
    device: CUdevice,
    /// All memory of the device, as the driver says it at the start.
    pub(crate) memory: u64,
    module: CUmodule,
    /// A blocking one: copies, which run in the legacy stream, wait for kernels and kernels for copies.
    pub(crate) stream: CUstream,
    /// After how many launches to wait, and how many there were since.
    queue: u64,
    launched: Cell<u64>,
    fill: CUfunction,
    step: CUfunction,
    verify: CUfunction,
    sum: CUfunction,
}

/// One allocation. It is freed with the value.
pub(crate) struct Buffer {
    pub(crate) address: CUdeviceptr,
    /// How much is mapped there, if it is mapped by this program.
    mapped: Option<u64>,
}

impl Gpu {
    /// Takes the device's primary context into use in this thread. It waits after every `queue` launches, if not 0.
    pub(crate) fn open(ordinal: i32, queue: u64) -> Result<Gpu> {
        result::init().context("cuInit")?;
        let device = result::device::get(ordinal).with_context(|| format!("there is no device {ordinal}"))?;
        // SAFETY: `device` came from the driver.
        let context: CUcontext =
            unsafe { result::primary_ctx::retain(device) }.context("cannot make a context")?;
        // SAFETY: the context was retained just now.
        unsafe { result::ctx::set_current(context) }?;
        // As frameworks do: once, at the start.
        let (_, memory) = result::mem_get_info()?;
        let image = CString::new(KERNELS)?;
        // SAFETY: the image is PTX text that ends with a zero.
        let module =
            unsafe { result::module::load_data(image.as_ptr().cast()) }.context("cannot load the kernels")?;
        let function = |name: &str| -> Result<CUfunction> {
            // SAFETY: the module is loaded.
            unsafe { result::module::get_function(module, CString::new(name)?) }
                .with_context(|| format!("no kernel {name}"))
        };
        Ok(Gpu {
            device,
            memory: memory as u64,
            module,
            stream: result::stream::create(result::stream::StreamKind::Default)?,
            queue,
            launched: Cell::new(0),
            fill: function("nvshare_fill")?,
            step: function("nvshare_step")?,
            verify: function("nvshare_verify")?,
            sum: function("nvshare_sum")?,
        })
    }

    /// The device's name.
    pub(crate) fn name(&self) -> Result<String> {
        Ok(result::device::get_name(self.device)?)
    }

    /// `word i := mix(seed, first + i)`
    pub(crate) fn fill(&self, ptr: CUdeviceptr, words: u64, seed: u64, first: u64) -> Result<()> {
        self.launch(self.fill, &[ptr, words, seed, first]).context("nvshare_fill")
    }

    /// `word i += add`
    pub(crate) fn step(&self, ptr: CUdeviceptr, words: u64, add: u64) -> Result<()> {
        self.launch(self.step, &[ptr, words, add]).context("nvshare_step")
    }

    /// The same, and never waits: it becomes a part of a graph.
    pub(crate) fn captured_step(&self, ptr: CUdeviceptr, words: u64, add: u64) -> Result<()> {
        self.submit(self.step, &[ptr, words, add]).context("nvshare_step, captured")
    }

    /// `*result += number of words that are not mix(seed, first + i) + added`
    pub(crate) fn verify(
        &self,
        ptr: CUdeviceptr,
        words: u64,
        seed: u64,
        first: u64,
        added: u64,
        result: CUdeviceptr,
    ) -> Result<()> {
        self.launch(self.verify, &[ptr, words, seed, first, added, result]).context("nvshare_verify")
    }

    /// `*result += sum of the words`
    pub(crate) fn sum(&self, ptr: CUdeviceptr, words: u64, result: CUdeviceptr) -> Result<()> {
        self.launch(self.sum, &[ptr, words, result]).context("nvshare_sum")
    }

    /// Waits for everything submitted.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.launched.set(0);
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.context("the device's work failed")
    }

    /// Words of device memory as the host sees them.
    pub(crate) fn read(address: CUdeviceptr, words: &mut [u64]) -> Result<()> {
        // SAFETY: callers name a range inside a live buffer, and a synchronous copy is done when it returns.
        unsafe { result::memcpy_dtoh_sync(words, address) }.context("cannot copy to the host")
    }

    /// Sets words of device memory from the host.
    pub(crate) fn write(address: CUdeviceptr, words: &[u64]) -> Result<()> {
        // SAFETY: callers name a range inside a live buffer.
        unsafe { result::memcpy_htod_sync(address, words) }.context("cannot copy to the device")
    }

    fn launch(&self, function: CUfunction, parameters: &[u64]) -> Result<()> {
        self.submit(function, parameters)?;
        self.launched.set(self.launched.get() + 1);
        if self.queue > 0 && self.launched.get() >= self.queue {
            self.synchronize()?;
        }
        Ok(())
    }

    fn submit(&self, function: CUfunction, parameters: &[u64]) -> Result<()> {
        let mut pointers: Vec<*mut c_void> =
            parameters.iter().map(|value| std::ptr::from_ref(value).cast_mut().cast()).collect();
        // SAFETY: the kernels take exactly these 64-bit parameters; the driver copies them before it returns.
        unsafe {
            result::launch_kernel(function, (BLOCKS, 1, 1), (THREADS, 1, 1), 0, self.stream, &mut pointers)
        }?;
        Ok(())
    }
}

impl Buffer {
    /// A new buffer with undefined contents, in the context that is current.
    pub(crate) fn allocate(bytes: u64, memory: Memory) -> Result<Buffer> {
        let (address, mapped) =
            Buffer::made(bytes, memory).with_context(|| format!("cannot allocate {bytes} bytes"))?;
        Ok(Buffer { address, mapped })
    }

    fn made(bytes: u64, memory: Memory) -> Result<(CUdeviceptr, Option<u64>)> {
        // SAFETY: a context is current, and the size is not zero.
        let address = unsafe {
            match memory {
                Memory::Vmm => {
                    let (address, mapped) = mapped::map(bytes)?;
                    return Ok((address, Some(mapped)));
                }
                Memory::ExportablePool => pool::allocate(bytes)?,
                Memory::Device | Memory::Graph | Memory::Ipc => result::malloc_sync(bytes as usize)?,
                Memory::Managed => {
                    result::malloc_managed(bytes as usize, sys::CUmemAttach_flags_enum::CU_MEM_ATTACH_GLOBAL)?
                }
                // The default stream's, before all that is launched in blocking streams afterwards.
                Memory::StreamOrdered => result::malloc_async(std::ptr::null_mut(), bytes as usize)?,
            }
        };
        Ok((address, None))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nothing else uses the stream, the module or this reference to the context. Errors at the end are
        // of no use to anybody: the report is printed already.
        unsafe {
            let _ = result::stream::destroy(self.stream);
            let _ = result::module::unload(self.module);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(bytes) = self.mapped {
            mapped::unmap(self.address, bytes);
            return;
        }
        // SAFETY: the address came from an allocation that nobody else frees.
        let _ = unsafe { result::free_sync(self.address) };
    }
}
