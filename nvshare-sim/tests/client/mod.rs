//! A client of the simulated driver for tests: the library, loaded as programs load it, and calls of its functions.

#![expect(unsafe_code, reason = "functions of a library that is loaded, and the memory they give")]
#![allow(
    dead_code,
    clippy::unused_self,
    reason = "every test file uses a part of it; streams and the like are a context's"
)]

pub(crate) mod array;
pub(crate) mod peer;
pub(crate) mod pool;
pub(crate) mod tiles;

use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use libloading::Library;
use nvshare_testbed::Artifacts;
use tempfile::TempDir;

/// A handle, an address, or anything else that is a word.
pub(crate) type Word = u64;

/// The kernels of the simulator as PTX; only names and parameters matter to it.
pub(crate) const PTX: &str = concat!(
    ".version 6.0\n.target sm_70\n.address_size 64\n",
    ".visible .entry nvshare_fill(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) { ret; }\n",
    ".visible .entry nvshare_step(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n",
    ".visible .entry nvshare_verify(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d, .param .u64 e, ",
    ".param .u64 f) { ret; }\n",
    ".visible .entry nvshare_sum(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n",
    ".visible .entry nvshare_store(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n",
    ".visible .entry nvshare_spin(.param .u64 a) { ret; }\n",
    ".visible .entry nvshare_store_late(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) { ret; }\n",
    ".visible .entry nvshare_wait_flag(.param .u64 a) { ret; }\n",
    ".visible .entry nvshare_fingerprint(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d, ",
    ".param .u64 e) { ret; }\n",
    ".visible .entry somebody_elses(.param .u64 a, .param .u32 b) { ret; }\n\0",
);

/// The card of this test process, and the library on it.
pub(crate) static DRIVER: LazyLock<Driver> = LazyLock::new(Driver::load);

pub(crate) struct Driver {
    library: Library,
    pub(crate) card: PathBuf,
}

extern "C" fn remove_card() {
    let _ = std::fs::remove_dir_all(&DRIVER.card);
}

impl Driver {
    fn load() -> Driver {
        let given = std::env::var_os("NVSHARE_SIM_DIR").map(PathBuf::from);
        let card = given.clone().unwrap_or_else(|| {
            TempDir::with_prefix_in("nvshare-test-", "/dev/shm").expect("a directory in /dev/shm").keep()
        });
        // SAFETY: the first thing that the tests of a process do is to come here, one at a time; and a handler that
        // only removes files is fit to be called at the end.
        unsafe {
            std::env::set_var("NVSHARE_SIM_DIR", &card);
            if given.is_none() {
                libc::atexit(remove_card);
            }
        }
        // SAFETY: the library's initialisers do nothing.
        let library = unsafe { Library::new(Artifacts::find().libcuda()) }.expect("libcuda.so");
        Driver { library, card }
    }

    /// The address of an exported symbol.
    pub(crate) fn address(&self, name: &str) -> Option<*mut c_void> {
        // SAFETY: only the address is used.
        unsafe { self.library.get::<*mut c_void>(name.as_bytes()) }.ok().map(|symbol| *symbol)
    }

    /// What the strict simulator complained about so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.card.join("violations")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// A function of the driver, as a type of function pointer.
    pub(crate) fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: tests call it with the arguments of its declaration, and with live pointers.
        *unsafe { self.library.get::<F>(name.as_bytes()) }.unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// Calls a driver function; the value is its result.
#[macro_export]
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        let function: extern "C" fn($($crate::call!(@infer $argument)),*) -> u32 =
            $crate::client::DRIVER.function(stringify!($name));
        function($($argument),*)
    }};
    (@infer $argument:expr) => { _ };
}

/// Calls a driver function that must succeed.
#[macro_export]
macro_rules! ok {
    ($name:ident($($argument:expr),* $(,)?)) => {
        assert_eq!($crate::call!($name($($argument),*)), 0, stringify!($name))
    };
}

/// A context of its own, current in this thread until the end; tests of a process take turns.
pub(crate) struct Context {
    pub(crate) handle: Word,
    pub(crate) module: Word,
    _turn: MutexGuard<'static, ()>,
}

impl Context {
    pub(crate) fn new() -> Context {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut handle, mut module) = (0, 0);
        ok!(cuInit(0_u32));
        ok!(cuCtxCreate_v2(&raw mut handle, 0_u32, 0_i32));
        ok!(cuModuleLoadData(&raw mut module, PTX.as_ptr()));
        Context { handle, module, _turn: turn }
    }

    pub(crate) fn stream(&self, flags: u32) -> Word {
        let mut stream = 0;
        ok!(cuStreamCreate(&raw mut stream, flags));
        stream
    }

    pub(crate) fn event(&self) -> Word {
        let mut event = 0;
        ok!(cuEventCreate(&raw mut event, 0_u32));
        event
    }

    pub(crate) fn device(&self, bytes: usize) -> Word {
        let mut address = 0;
        ok!(cuMemAlloc_v2(&raw mut address, bytes));
        address
    }

    /// Pinned memory, as words.
    pub(crate) fn pinned(&self, bytes: usize) -> &'static mut [u64] {
        let mut address: *mut u64 = std::ptr::null_mut();
        ok!(cuMemAllocHost_v2(&raw mut address, bytes));
        // SAFETY: pinned memory of this size, which lives as long as the process as nobody frees it.
        unsafe { std::slice::from_raw_parts_mut(address, bytes / 8) }
    }

    pub(crate) fn function(&self, name: &str) -> Word {
        let mut function = 0;
        let name = format!("{name}\0");
        ok!(cuModuleGetFunction(&raw mut function, self.module, name.as_ptr()));
        function
    }

    /// Launches a kernel of words by its name; the value is the call's result.
    pub(crate) fn launch(&self, stream: Word, name: &str, words: &[Word]) -> u32 {
        launch(self.function(name), stream, words)
    }
}

/// `cuLaunchKernel`.
type Launch =
    extern "C" fn(Word, u32, u32, u32, u32, u32, u32, u32, Word, *const *const Word, *const Word) -> u32;

/// Launches a kernel of words; the value is the call's result.
pub(crate) fn launch(function: Word, stream: Word, words: &[Word]) -> u32 {
    let pointers: Vec<*const Word> = words.iter().map(std::ptr::from_ref).collect();
    launch_as(function, [1, 32, 0], stream, pointers.as_ptr(), std::ptr::null())
}

/// Launches a kernel of words in the thread's own default stream.
pub(crate) fn launch_in_own_stream(function: Word, words: &[Word]) -> u32 {
    let pointers: Vec<*const Word> = words.iter().map(std::ptr::from_ref).collect();
    launch_by("cuLaunchKernel_ptsz", function, [1, 32, 0], 0, pointers.as_ptr(), std::ptr::null())
}

/// Launches a kernel in this shape (blocks, threads of each, bytes of shared memory), with its arguments in either way.
pub(crate) fn launch_as(
    function: Word,
    shape: [u32; 3],
    stream: Word,
    parameters: *const *const Word,
    extra: *const Word,
) -> u32 {
    launch_by("cuLaunchKernel", function, shape, stream, parameters, extra)
}

fn launch_by(
    name: &str,
    function: Word,
    [blocks, threads, shared]: [u32; 3],
    stream: Word,
    parameters: *const *const Word,
    extra: *const Word,
) -> u32 {
    let launch: Launch = DRIVER.function(name);
    launch(function, blocks, 1, 1, threads, 1, 1, shared, stream, parameters, extra)
}

/// Lets a kernel end that waits for the first word of this memory.
pub(crate) fn set_flag(flag: &mut [u64]) {
    // SAFETY: the first word of the caller's memory; the kernel reads it atomically too.
    unsafe { AtomicU32::from_ptr(flag.as_mut_ptr().cast()) }.store(1, Ordering::SeqCst);
}

/// Free memory of the current context's card.
pub(crate) fn free_bytes() -> usize {
    let (mut free, mut total) = (0_usize, 0_usize);
    ok!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
    free
}

/// Managed memory.
pub(crate) fn managed(bytes: usize) -> Word {
    let mut start = 0;
    ok!(cuMemAllocManaged(&raw mut start, bytes, 1_u32));
    start
}

impl Drop for Context {
    fn drop(&mut self) {
        let destroyed = call!(cuCtxDestroy_v2(self.handle));
        assert!(destroyed == 0 || std::thread::panicking(), "cuCtxDestroy: {destroyed}");
    }
}

/// Physical memory behind reserved addresses.
#[derive(Clone, Copy)]
pub(crate) struct Mapped {
    pub(crate) start: Word,
    pub(crate) handle: Word,
    bytes: usize,
    device: u32,
}

/// Physical memory of device 0, mapped for it.
pub(crate) fn vmm(bytes: usize) -> Mapped {
    vmm_of(0, bytes)
}

/// Physical memory of a device, mapped for it.
pub(crate) fn vmm_of(device: u32, bytes: usize) -> Mapped {
    let mut properties = [0_u32; 8];
    (properties[0], properties[2], properties[3]) = (1, 1, device);
    let (mut start, mut handle): (Word, Word) = (0, 0);
    ok!(cuMemAddressReserve(&raw mut start, bytes, 0_usize, 0_u64, 0_u64));
    ok!(cuMemCreate(&raw mut handle, bytes, properties.as_ptr(), 0_u64));
    let mapped = Mapped { start, handle, bytes, device };
    assert_eq!(mapped.map(), 0);
    mapped
}

impl Mapped {
    /// Maps it and gives its device access; the value is the first error.
    pub(crate) fn map(&self) -> u32 {
        let grant = [1_u32, self.device, 3];
        match call!(cuMemMap(self.start, self.bytes, 0_usize, self.handle, 0_u64)) {
            0 => call!(cuMemSetAccess(self.start, self.bytes, grant.as_ptr(), 1_usize)),
            error => error,
        }
    }

    /// Takes it away.
    pub(crate) fn end(self) {
        ok!(cuMemUnmap(self.start, self.bytes));
        ok!(cuMemRelease(self.handle));
        ok!(cuMemAddressFree(self.start, self.bytes));
    }
}

/// Runs `role` in a process of its own with a card of its own: the test `name` of this binary again, with `role` and
/// `environment` set. Its standard error is returned; it must succeed.
pub(crate) fn alone(name: &str, environment: &[(&str, &str)]) -> String {
    let card = TempDir::with_prefix_in("nvshare-test-", "/dev/shm").expect("a directory in /dev/shm");
    let mut command = Command::new(std::env::current_exe().expect("this executable"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env("NVSHARE_TEST_ALONE", name).env("NVSHARE_SIM_DIR", card.path());
    command.envs(environment.iter().copied());
    let output = command.output().expect("this executable again");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
    text
}

/// Whether this process was started by [`alone`].
pub(crate) fn is_alone() -> bool {
    std::env::var_os("NVSHARE_TEST_ALONE").is_some()
}
