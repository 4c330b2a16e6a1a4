//! The scripted driver of these tests, and what they do with it.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::ffi::{CString, c_int, c_long, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nvshare::cuda::sys::{CUDA_LAUNCH_PARAMS, CUstream};
use nvshare::gate;
use nvshare::turn::drain::{Stalled, drain};
use nvshare::turn::drained::Drained;

use crate::programs;

// The hooks, as an application calls them.
unsafe extern "C" {
    pub(crate) fn cuInit(flags: u32) -> c_int;
    pub(crate) fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> c_int;
    pub(crate) fn cuStreamCreate(stream: *mut CUstream, flags: u32) -> c_int;
    pub(crate) fn cuStreamDestroy_v2(stream: CUstream) -> c_int;
    pub(crate) fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_int) -> c_int;
    pub(crate) fn cuStreamEndCapture(stream: CUstream, graph: *mut *mut c_void) -> c_int;
    pub(crate) fn cuDevicePrimaryCtxReset_v2(device: c_int) -> c_int;
    pub(crate) fn cuEventCreate(event: *mut *mut c_void, flags: u32) -> c_int;
    pub(crate) fn cuEventRecord(event: *mut c_void, stream: CUstream) -> c_int;
    pub(crate) fn cuStreamWaitEvent(stream: CUstream, event: *mut c_void, flags: u32) -> c_int;
    pub(crate) fn cuLaunchCooperativeKernelMultiDevice(
        list: *mut CUDA_LAUNCH_PARAMS,
        devices: u32,
        flags: u32,
    ) -> c_int;
    pub(crate) fn cuLaunchKernel(
        function: *mut c_void,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> c_int;
}

/// Long enough that only a test that fails waits for it.
pub(crate) const NEVER: Duration = Duration::from_mins(1);

/// Short, for drains that are expected to give up.
pub(crate) const SOON: Duration = Duration::from_millis(100);

pub(crate) const LEGACY: CUstream = std::ptr::null_mut();

pub(crate) const PER_THREAD: CUstream = std::ptr::without_provenance_mut(2);

/// The scripted driver, for one test at a time: there is one gate in a process.
pub(crate) struct Script {
    pub(crate) finish: unsafe extern "C" fn(CUstream, c_long),
    pub(crate) stick: unsafe extern "C" fn(CUstream, c_int),
    pub(crate) on_destroy: unsafe extern "C" fn(Option<extern "C" fn()>),
    pub(crate) fail: unsafe extern "C" fn(c_int),
    pub(crate) unanswered: unsafe extern "C" fn(c_int),
    pub(crate) refuse_destroy: unsafe extern "C" fn(c_int),
    pub(crate) recorded: unsafe extern "C" fn() -> c_int,
    pub(crate) asked: unsafe extern "C" fn() -> c_int,
    pub(crate) violations: unsafe extern "C" fn() -> c_int,
}

pub(crate) fn script() -> (MutexGuard<'static, ()>, &'static Script) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    static SCRIPT: OnceLock<Script> = OnceLock::new();
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let script = SCRIPT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let library = programs::compile_driver("scripted.c", directory.path());
        // SAFETY: no other thread of this process looks at the environment; a library of ours, whose functions have these
        // signatures.
        unsafe {
            std::env::set_var("NVSHARE_SOCKET", directory.path().join("nobody.sock"));
            let path = CString::new(library.into_os_string().into_encoded_bytes()).unwrap();
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
            assert!(!library.is_null());
            let script = Script {
                finish: find(library, c"script_finish"),
                stick: find(library, c"script_stick"),
                on_destroy: find(library, c"script_on_destroy"),
                fail: find(library, c"script_fail"),
                unanswered: find(library, c"script_unanswered"),
                refuse_destroy: find(library, c"script_refuse_destroy"),
                recorded: find(library, c"script_recorded"),
                asked: find(library, c"script_asked"),
                violations: find(library, c"script_violations"),
            };
            let mut context = std::ptr::null_mut();
            assert_eq!((cuInit(0), cuDevicePrimaryCtxRetain(&raw mut context, 0)), (0, 0));
            script
        }
    });
    (guard, script)
}

/// # Safety
/// The function of that name has the signature `F`, which is that of a function.
unsafe fn find<F>(library: *mut c_void, name: &std::ffi::CStr) -> F {
    // SAFETY: an open library and a C string; the caller's promise.
    unsafe {
        let found = libc::dlsym(library, name.as_ptr());
        assert!(!found.is_null());
        std::mem::transmute_copy::<*mut c_void, F>(&found)
    }
}

impl Script {
    pub(crate) fn finish(&self, stream: CUstream, launches: c_long) {
        // SAFETY: streams of the scripted driver.
        unsafe { (self.finish)(stream, launches) }
    }

    /// A thread is stuck in submitting to `stream`, or no longer.
    pub(crate) fn stick(&self, stream: CUstream, yes: bool) {
        // SAFETY: streams of the scripted driver.
        unsafe { (self.stick)(stream, yes.into()) }
    }

    /// What the driver answers when it is asked about a stream, if not the truth.
    pub(crate) fn unanswered(&self, code: c_int) {
        // SAFETY: stores a number.
        unsafe { (self.unanswered)(code) }
    }

    pub(crate) fn refuse_destroy(&self, yes: bool) {
        // SAFETY: stores a number.
        unsafe { (self.refuse_destroy)(yes.into()) }
    }

    /// `act` is called in each destruction of a stream, when its handle is free again.
    pub(crate) fn on_destroy(&self, act: Option<extern "C" fn()>) {
        // SAFETY: stores a pointer to a function that is there for ever.
        unsafe { (self.on_destroy)(act) }
    }

    /// How many events of ours were recorded since this was last asked.
    pub(crate) fn recorded(&self) -> c_int {
        // SAFETY: reads a number.
        unsafe { (self.recorded)() }
    }

    /// The same of questions about streams.
    pub(crate) fn asked(&self) -> c_int {
        // SAFETY: reads a number.
        unsafe { (self.asked)() }
    }

    pub(crate) fn violations(&self) -> c_int {
        // SAFETY: reads a number.
        unsafe { (self.violations)() }
    }
}

pub(crate) fn stream(non_blocking: bool) -> CUstream {
    let mut stream = LEGACY;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuStreamCreate(&raw mut stream, u32::from(non_blocking)) }, 0);
    stream
}

pub(crate) fn launch(stream: CUstream) {
    let null = std::ptr::null_mut::<c_void>();
    // SAFETY: the scripted driver looks at the stream only.
    assert_eq!(unsafe { cuLaunchKernel(null, 1, 1, 1, 1, 1, 1, 0, stream, null.cast(), null.cast()) }, 0);
}

pub(crate) fn begin_capture(stream: CUstream) {
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamBeginCapture_v2(stream, 0) }, 0);
}

pub(crate) fn end_capture(stream: CUstream) {
    let mut graph = std::ptr::null_mut();
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamEndCapture(stream, &raw mut graph) }, 0);
}

/// Shuts the gate, drains, opens it again.
pub(crate) fn drain_shut(stall: Duration) -> Result<Drained, Stalled> {
    gate::shut();
    let result = drain(stall);
    assert!(gate::is_shut(), "the drain leaves the gate to whoever shut it");
    gate::open();
    result
}

/// Drains in a thread of its own, as the engine does; checks that it does not end before `then` has run.
pub(crate) fn drains_only_after(then: impl FnOnce()) {
    gate::shut();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| drain(NEVER));
        std::thread::sleep(SOON);
        assert!(!draining.is_finished(), "the drain ended with work in flight");
        then();
        let result = draining.join().unwrap();
        assert!(result.is_ok(), "{result:?}");
    });
    gate::open();
}
