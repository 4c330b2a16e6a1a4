//! The driver as the test clients use it: thin calls that panic with the call's name.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::ffi::{CString, c_void};

use cudarc::driver::sys::{self, CUdeviceptr, CUfunction, CUmodule, CUresult, CUstream};

const KERNELS: &str = include_str!("../../../xtask/workload/src/kernels.ptx");

/// One call of the driver, by its name.
macro_rules! cu {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: a test program's own call; its arguments are valid or the driver says so.
        let result = unsafe { sys::$name($($argument),*) };
        assert_eq!(result, sys::CUresult::CUDA_SUCCESS, "{}", stringify!($name));
    }};
}
pub(crate) use cu;

/// The first device's primary context, current in this thread, and the kernels.
pub(crate) struct Gpu {
    module: CUmodule,
}

impl Gpu {
    pub(crate) fn open() -> Gpu {
        cu!(cuInit(0));
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&raw mut context, 0));
        cu!(cuCtxSetCurrent(context));
        Gpu::load()
    }

    /// The kernels, in the current context.
    pub(crate) fn load() -> Gpu {
        let image = CString::new(KERNELS).unwrap();
        let mut module = std::ptr::null_mut();
        cu!(cuModuleLoadData(&raw mut module, image.as_ptr().cast()));
        Gpu { module }
    }

    fn kernel(&self, name: &str) -> CUfunction {
        let name = CString::new(name).unwrap();
        let mut function = std::ptr::null_mut();
        cu!(cuModuleGetFunction(&raw mut function, self.module, name.as_ptr()));
        function
    }

    /// Launches a kernel of one CTA per 64 KiB or so; all parameters are 64 bits.
    pub(crate) fn launch(&self, name: &str, stream: CUstream, parameters: &[u64]) {
        let mut values = parameters.to_vec();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let function = self.kernel(name);
        let pointers = pointers.as_mut_ptr();
        cu!(cuLaunchKernel(function, 64, 1, 1, 128, 1, 1, 0, stream, pointers, std::ptr::null_mut()));
    }
}

pub(crate) fn try_alloc(bytes: usize) -> Result<CUdeviceptr, CUresult> {
    let mut pointer = 0;
    // SAFETY: `pointer` is where the answer goes.
    match unsafe { sys::cuMemAlloc_v2(&raw mut pointer, bytes) } {
        CUresult::CUDA_SUCCESS => Ok(pointer),
        error => Err(error),
    }
}

/// Makes physical memory of a kind that is not moved, maps it, and gives up its handle at once: it lives by its mapping. Where it is mapped.
pub(crate) fn map_and_release(bytes: usize) -> CUdeviceptr {
    let (mut handle, mut at) = (0, 0);
    assert_eq!(create_as(bytes, &mut handle), CUresult::CUDA_SUCCESS);
    cu!(cuMemAddressReserve(&raw mut at, bytes, 0, 0, 0));
    cu!(cuMemMap(at, bytes, 0, handle, 0));
    cu!(cuMemRelease(handle));
    at
}

/// Total and free memory of the first device, as NVML says it; found as all bindings find it.
pub(crate) fn nvml_memory() -> (u64, u64) {
    type Handle = *mut std::ffi::c_void;
    // SAFETY: the names are C strings, and NVML's functions have these signatures.
    unsafe {
        let library = libc::dlopen(c"libnvidia-ml.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "no NVML");
        let find = |name: &std::ffi::CStr| {
            let found = libc::dlsym(library, name.as_ptr());
            assert!(!found.is_null(), "NVML has no {name:?}");
            found
        };
        let init: unsafe extern "C" fn() -> i32 = std::mem::transmute(find(c"nvmlInit_v2"));
        let handle: unsafe extern "C" fn(u32, *mut Handle) -> i32 =
            std::mem::transmute(find(c"nvmlDeviceGetHandleByIndex_v2"));
        let memory: unsafe extern "C" fn(Handle, *mut u64) -> i32 =
            std::mem::transmute(find(c"nvmlDeviceGetMemoryInfo"));
        let second: unsafe extern "C" fn(Handle, *mut u64) -> i32 =
            std::mem::transmute(find(c"nvmlDeviceGetMemoryInfo_v2"));
        let (mut device, mut first, mut newer) = (std::ptr::null_mut(), [0; 3], [0; 5]);
        assert_eq!(init(), 0);
        assert_eq!(handle(0, &raw mut device), 0);
        assert_eq!(memory(device, first.as_mut_ptr()), 0);
        newer[0] = 2 << 24 | size_of_val(&newer) as u64;
        assert_eq!(second(device, newer.as_mut_ptr()), 0);
        let [total, free, used] = first;
        assert_eq!((newer[1], newer[3], newer[2] + newer[4]), (total, free, used), "both forms agree");
        assert_eq!(free + used, total);
        (total, free)
    }
}

/// Makes physical memory on the first device, of a kind that is not moved; it stays until the process ends.
pub(crate) fn create(bytes: usize) -> CUresult {
    create_as(bytes, &mut 0)
}

fn create_as(bytes: usize, handle: &mut u64) -> CUresult {
    // SAFETY: all zero is a valid value of this plain struct.
    let mut property: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    property.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    property.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    // Compressible.
    property.allocFlags.compressionType = 1;
    // SAFETY: `handle` is where the answer goes; the property lives until the call returns.
    unsafe { sys::cuMemCreate(handle, bytes, &raw const property, 0) }
}

/// As a word.
pub(crate) fn outcome(result: CUresult) -> &'static str {
    match result {
        CUresult::CUDA_SUCCESS => "done",
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "out of memory",
        error => panic!("{error:?}"),
    }
}

pub(crate) fn alloc(bytes: usize) -> CUdeviceptr {
    try_alloc(bytes).expect("cuMemAlloc")
}

pub(crate) fn free(pointer: CUdeviceptr) {
    cu!(cuMemFree_v2(pointer));
}

pub(crate) fn stream() -> CUstream {
    let mut stream = std::ptr::null_mut();
    // Non-blocking: the legacy stream does not wait for it.
    cu!(cuStreamCreate(&raw mut stream, 1));
    stream
}

pub(crate) fn synchronize(stream: CUstream) {
    cu!(cuStreamSynchronize(stream));
}

pub(crate) fn write(pointer: CUdeviceptr, bytes: &[u8]) {
    cu!(cuMemcpyHtoD_v2(pointer, bytes.as_ptr().cast(), bytes.len()));
    // From pageable memory it may return before the last bytes are there, and our streams wait for no legacy stream.
    cu!(cuStreamSynchronize(std::ptr::null_mut()));
}

pub(crate) fn read(pointer: CUdeviceptr, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0_u8; bytes];
    cu!(cuMemcpyDtoH_v2(buffer.as_mut_ptr().cast(), pointer, bytes));
    buffer
}

/// All 64-bit words of a range that are not `value`.
pub(crate) fn others(pointer: CUdeviceptr, bytes: usize, value: u64) -> usize {
    read(pointer, bytes).as_chunks::<8>().0.iter().filter(|word| u64::from_ne_bytes(**word) != value).count()
}

/// Free bytes of the device, by the driver's account.
pub(crate) fn free_bytes() -> usize {
    let (mut free, mut total) = (0, 0);
    cu!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
    free
}
