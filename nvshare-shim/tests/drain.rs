//! The drain in front of a driver whose work is finished when the test says so: what it waits for, what it leaves alone,
//! and when it gives up.

use std::ffi::{CString, c_int, c_long, c_void};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nvshare::cuda::CUresult;
use nvshare::cuda::sys::CUstream;
use nvshare::drain::{Drained, Stalled, drain};
use nvshare::{gate, pace};

mod programs;

// The hooks, as an application calls them.
unsafe extern "C" {
    fn cuInit(flags: u32) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> c_int;
    fn cuStreamCreate(stream: *mut CUstream, flags: u32) -> c_int;
    fn cuStreamDestroy_v2(stream: CUstream) -> c_int;
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_int) -> c_int;
    fn cuStreamEndCapture(stream: CUstream, graph: *mut *mut c_void) -> c_int;
    fn cuLaunchKernel(
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
const NEVER: Duration = Duration::from_mins(1);
/// Short, for drains that are expected to give up.
const SOON: Duration = Duration::from_millis(100);
const LEGACY: CUstream = std::ptr::null_mut();
const PER_THREAD: CUstream = std::ptr::without_provenance_mut(2);

/// The scripted driver, for one test at a time: there is one gate in a process.
struct Script {
    finish: unsafe extern "C" fn(CUstream, c_long),
    fail: unsafe extern "C" fn(c_int),
    unmarkable: unsafe extern "C" fn(c_int),
    violations: unsafe extern "C" fn() -> c_int,
}

fn script() -> (MutexGuard<'static, ()>, &'static Script) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    static SCRIPT: OnceLock<Script> = OnceLock::new();
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let script = SCRIPT.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let library = programs::compile_driver("scripted.c", directory.path());
        // SAFETY: no other thread of this process looks at the environment; a library of ours.
        unsafe {
            std::env::set_var("NVSHARE_SOCKET", directory.path().join("nobody.sock"));
            let path = CString::new(library.into_os_string().into_encoded_bytes()).unwrap();
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
            assert!(!library.is_null());
            let find = |name: &std::ffi::CStr| {
                let found = libc::dlsym(library, name.as_ptr());
                assert!(!found.is_null());
                found
            };
            let script = Script {
                finish: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(CUstream, c_long)>(find(
                    c"script_finish",
                )),
                fail: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(find(c"script_fail")),
                unmarkable: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(find(
                    c"script_unmarkable",
                )),
                violations: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(find(
                    c"script_violations",
                )),
            };
            let mut context = std::ptr::null_mut();
            assert_eq!((cuInit(0), cuDevicePrimaryCtxRetain(&raw mut context, 0)), (0, 0));
            script
        }
    });
    (guard, script)
}

impl Script {
    fn finish(&self, stream: CUstream, launches: c_long) {
        // SAFETY: streams of the scripted driver.
        unsafe { (self.finish)(stream, launches) }
    }

    fn violations(&self) -> c_int {
        // SAFETY: reads a number.
        unsafe { (self.violations)() }
    }
}

fn stream(non_blocking: bool) -> CUstream {
    let mut stream = LEGACY;
    // SAFETY: a place for the handle.
    assert_eq!(unsafe { cuStreamCreate(&raw mut stream, u32::from(non_blocking)) }, 0);
    stream
}

fn launch(stream: CUstream) {
    let null = std::ptr::null_mut::<c_void>();
    // SAFETY: the scripted driver looks at the stream only.
    assert_eq!(unsafe { cuLaunchKernel(null, 1, 1, 1, 1, 1, 1, 0, stream, null.cast(), null.cast()) }, 0);
}

fn begin_capture(stream: CUstream) {
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamBeginCapture_v2(stream, 0) }, 0);
}

fn end_capture(stream: CUstream) {
    let mut graph = std::ptr::null_mut();
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamEndCapture(stream, &raw mut graph) }, 0);
}

/// Shuts the gate, drains, opens it again.
fn drain_shut(stall: Duration) -> Result<Drained, Stalled> {
    gate::shut();
    let result = drain(stall);
    assert!(gate::is_shut(), "the drain leaves the gate to whoever shut it");
    gate::open();
    result
}

/// Drains in a thread of its own, as the engine does; checks that it does not end before `then` has run.
fn drains_only_after(then: impl FnOnce()) {
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

#[test]
fn a_drain_waits_for_blocking_streams_non_blocking_ones_and_the_default_ones() {
    let (_guard, script) = script();
    for stream in [stream(false), stream(true), LEGACY, PER_THREAD] {
        launch(stream);
        drains_only_after(|| script.finish(stream, 1));
    }
    assert!(drain_shut(NEVER).is_ok());
    assert_eq!(script.violations(), 0);
}

#[test]
fn a_drain_gives_up_when_nothing_is_completed_and_not_as_long_as_something_is() {
    let (_guard, script) = script();
    let streams: Vec<_> = (0..4).map(|_| stream(true)).collect();
    for stream in &streams {
        launch(*stream);
    }
    let Err(Stalled::NoProgress(what)) = drain_shut(SOON) else { panic!("drained with work in flight") };
    assert!(what.contains("4 streams"), "{what}");
    // One at a time, all together later than the patience of the drain ends.
    gate::shut();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| drain(Duration::from_secs(2)));
        for stream in &streams {
            std::thread::sleep(Duration::from_millis(700));
            script.finish(*stream, 1);
        }
        assert!(draining.join().unwrap().is_ok());
    });
    gate::open();
    assert_eq!(script.violations(), 0);
}

#[test]
fn a_thread_inside_a_call_is_waited_for() {
    let (_guard, _script) = script();
    let pass = gate::pass();
    gate::shut();
    std::thread::scope(|scope| {
        assert!(matches!(scope.spawn(|| drain(SOON)).join().unwrap(), Err(Stalled::NoProgress(_))));
        drop(pass);
        assert!(scope.spawn(|| drain(NEVER)).join().unwrap().is_ok());
    });
    gate::open();
}

#[test]
fn a_capture_is_left_alone_and_what_its_stream_held_before_is_waited_for() {
    let (_guard, script) = script();
    let captured = stream(true);
    launch(captured);
    begin_capture(captured);
    gate::shut();
    // Into the captured stream: executes nothing, passes.
    launch(captured);
    gate::open();
    drains_only_after(|| script.finish(captured, 1));
    end_capture(captured);
    assert_eq!(script.violations(), 0);
}

#[test]
fn work_of_a_destroyed_stream_is_waited_for() {
    let (_guard, script) = script();
    let stream = stream(true);
    launch(stream);
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamDestroy_v2(stream) }, 0);
    // A drain that gave up has not forgotten it for the next one.
    assert!(matches!(drain_shut(SOON), Err(Stalled::NoProgress(_))));
    drains_only_after(|| script.finish(stream, 1));
}

#[test]
fn with_work_in_a_default_stream_and_a_blocking_stream_captured_the_gate_stands_ajar() {
    let (_guard, script) = script();
    let (captured, other) = (stream(false), stream(true));
    launch(LEGACY);
    begin_capture(captured);
    drains_only_after(|| {
        // The capture can only end if the application's threads can go on, whatever they do before.
        launch(other);
        script.finish(other, 1);
        script.finish(LEGACY, 1);
        end_capture(captured);
    });
    // Nothing in the default streams: a capture is no reason to wait.
    begin_capture(captured);
    assert!(drain_shut(NEVER).is_ok());
    end_capture(captured);
    assert_eq!(script.violations(), 0);
}

#[test]
fn a_paced_thread_waits_for_what_it_submitted_and_an_unpaced_one_does_not() {
    const LAUNCHES: usize = 1000;
    let (_guard, script) = script();
    let stream = stream(true);
    let launched = AtomicUsize::new(0);
    let number = stream.expose_provenance();
    let many = || {
        for _ in 0..LAUNCHES {
            launch(std::ptr::with_exposed_provenance_mut(number));
            launched.fetch_add(1, Ordering::Relaxed);
        }
    };
    many();
    assert_eq!(launched.swap(0, Ordering::Relaxed), LAUNCHES);
    script.finish(stream, LAUNCHES as c_long);
    pace::set(true);
    std::thread::scope(|scope| {
        let thread = scope.spawn(many);
        std::thread::sleep(SOON);
        let submitted = launched.load(Ordering::Relaxed);
        assert!(submitted < 16, "{submitted} launches are in flight and none is finished");
        assert_eq!(gate::inside(), 0, "who waits for the device is outside the gate");
        script.finish(stream, LAUNCHES as c_long);
        thread.join().unwrap();
    });
    pace::set(false);
    assert_eq!(launched.load(Ordering::Relaxed), LAUNCHES);
}

#[test]
fn what_cannot_be_marked_is_not_taken_for_finished() {
    let (_guard, script) = script();
    // SAFETY: stores a number.
    unsafe { (script.unmarkable)(1) };
    let result = drain_shut(SOON);
    // SAFETY: the same.
    unsafe { (script.unmarkable)(0) };
    let Err(Stalled::NoProgress(what)) = result else { panic!("drained without knowing") };
    assert!(what.contains("CUDA_ERROR_SCRIPTED"), "{what}");
    assert!(drain_shut(NEVER).is_ok());
}

#[test]
fn a_sticky_error_opens_the_gate_for_good() {
    const MARK: &str = "NVSHARE_TEST_STICKY";
    if std::env::var_os(MARK).is_none() {
        // In a process of its own: nothing can be swapped there afterwards.
        let itself = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_sticky_error_opens_the_gate_for_good"])
            .env(MARK, "1")
            .status();
        assert!(itself.unwrap().success());
        return;
    }
    let (_guard, script) = script();
    launch(stream(true));
    // SAFETY: stores a number.
    unsafe { (script.fail)(700) };
    gate::shut();
    assert_eq!(drain(NEVER).unwrap_err(), Stalled::Dead(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    assert!(!gate::is_shut());
    gate::shut();
    assert!(!gate::is_shut(), "a dead device's gate stays open");
    launch(LEGACY);
}
