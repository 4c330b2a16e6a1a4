//! The drain in front of a driver whose work is finished when the test says so: what it waits for, what it leaves alone,
//! and when it gives up.

use std::ffi::{CString, c_int, c_long, c_void};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nvshare::cuda::CUresult;
use nvshare::cuda::sys::{CUDA_LAUNCH_PARAMS, CUstream};
use nvshare::turn::drain::{Stalled, drain};
use nvshare::turn::drained::Drained;
use nvshare::turn::pace;
use nvshare::{gate, turn};

mod programs;

// The hooks, as an application calls them.
unsafe extern "C" {
    fn cuInit(flags: u32) -> c_int;
    fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> c_int;
    fn cuStreamCreate(stream: *mut CUstream, flags: u32) -> c_int;
    fn cuStreamDestroy_v2(stream: CUstream) -> c_int;
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_int) -> c_int;
    fn cuStreamEndCapture(stream: CUstream, graph: *mut *mut c_void) -> c_int;
    fn cuDevicePrimaryCtxReset_v2(device: c_int) -> c_int;
    fn cuEventCreate(event: *mut *mut c_void, flags: u32) -> c_int;
    fn cuEventRecord(event: *mut c_void, stream: CUstream) -> c_int;
    fn cuStreamWaitEvent(stream: CUstream, event: *mut c_void, flags: u32) -> c_int;
    fn cuLaunchCooperativeKernelMultiDevice(list: *mut CUDA_LAUNCH_PARAMS, devices: u32, flags: u32)
    -> c_int;
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
    stick: unsafe extern "C" fn(CUstream, c_int),
    on_destroy: unsafe extern "C" fn(Option<extern "C" fn()>),
    fail: unsafe extern "C" fn(c_int),
    unanswered: unsafe extern "C" fn(c_int),
    refuse_destroy: unsafe extern "C" fn(c_int),
    recorded: unsafe extern "C" fn() -> c_int,
    asked: unsafe extern "C" fn() -> c_int,
    violations: unsafe extern "C" fn() -> c_int,
}

fn script() -> (MutexGuard<'static, ()>, &'static Script) {
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
    fn finish(&self, stream: CUstream, launches: c_long) {
        // SAFETY: streams of the scripted driver.
        unsafe { (self.finish)(stream, launches) }
    }

    /// A thread is stuck in submitting to `stream`, or no longer.
    fn stick(&self, stream: CUstream, yes: bool) {
        // SAFETY: streams of the scripted driver.
        unsafe { (self.stick)(stream, yes.into()) }
    }

    /// What the driver answers when it is asked about a stream, if not the truth.
    fn unanswered(&self, code: c_int) {
        // SAFETY: stores a number.
        unsafe { (self.unanswered)(code) }
    }

    fn refuse_destroy(&self, yes: bool) {
        // SAFETY: stores a number.
        unsafe { (self.refuse_destroy)(yes.into()) }
    }

    /// `act` is called in each destruction of a stream, when its handle is free again.
    fn on_destroy(&self, act: Option<extern "C" fn()>) {
        // SAFETY: stores a pointer to a function that is there for ever.
        unsafe { (self.on_destroy)(act) }
    }

    /// How many events of ours were recorded since this was last asked.
    fn recorded(&self) -> c_int {
        // SAFETY: reads a number.
        unsafe { (self.recorded)() }
    }

    /// The same of questions about streams.
    fn asked(&self) -> c_int {
        // SAFETY: reads a number.
        unsafe { (self.asked)() }
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
    let pass = turn::pass();
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
    // Nor is it where they were seen to be idle just before it began, though no drain has known that before.
    launch(LEGACY);
    script.finish(LEGACY, 1);
    begin_capture(captured);
    assert!(drain_shut(SOON).is_ok());
    end_capture(captured);
    assert_eq!(script.violations(), 0);
}

/// Threads are paced while it lives, and no longer: the next test begins as this one did.
struct Paced;

impl Paced {
    fn begin() -> Paced {
        pace::set(true);
        Paced
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        pace::set(false);
    }
}

#[test]
fn a_paced_thread_waits_for_the_batch_before_and_an_unpaced_one_does_not() {
    const LAUNCHES: usize = 1000;
    let (_guard, script) = script();
    let stream = stream(true);
    let launched = AtomicUsize::new(0);
    let number = stream.expose_provenance();
    // Says after how long it had made the sixteenth launch: by its own clock, so that a busy machine only makes it later.
    let many = || {
        let (begun, mut sixteenth) = (Instant::now(), Duration::ZERO);
        for number_of_launch in 1..=LAUNCHES {
            launch(std::ptr::with_exposed_provenance_mut(number));
            launched.fetch_add(1, Ordering::Relaxed);
            if number_of_launch == 16 {
                sixteenth = begun.elapsed();
            }
        }
        sixteenth
    };
    many();
    assert_eq!(launched.swap(0, Ordering::Relaxed), LAUNCHES);
    script.finish(stream, LAUNCHES as c_long);
    let _paced = Paced::begin();
    std::thread::scope(|scope| {
        let thread = scope.spawn(many);
        let limit = Instant::now() + NEVER;
        while launched.load(Ordering::Relaxed) == 0 || gate::inside() != 0 {
            assert!(Instant::now() < limit, "who waits for the device is outside the gate");
            std::thread::yield_now();
        }
        std::thread::sleep(SOON);
        let submitted = launched.load(Ordering::Relaxed);
        // A batch is in flight behind the one that is waited for.
        script.finish(stream, 8);
        while launched.load(Ordering::Relaxed) <= submitted {
            assert!(Instant::now() < limit, "it waits for the last launch, and the device for it");
            std::thread::yield_now();
        }
        script.finish(stream, LAUNCHES as c_long);
        let sixteenth = thread.join().unwrap();
        assert!(
            sixteenth > SOON / 2,
            "sixteen launches were in flight after {sixteenth:?}, and none was finished"
        );
    });
    assert_eq!(launched.load(Ordering::Relaxed), LAUNCHES);
}

#[test]
fn what_the_driver_does_not_answer_for_is_not_taken_for_finished() {
    let (_guard, script) = script();
    let _stream = stream(true);
    // As for a stream that is gone: but this one was not destroyed.
    script.unanswered(400);
    let result = drain_shut(SOON);
    script.unanswered(0);
    let Err(Stalled::NoProgress(what)) = result else { panic!("drained without knowing") };
    assert!(what.contains("CUDA_ERROR_SCRIPTED"), "{what}");
    assert!(drain_shut(NEVER).is_ok());
}

#[test]
fn a_drain_records_nothing_anywhere_however_often_it_is_given_up() {
    let (_guard, script) = script();
    let streams = [stream(false), stream(true), LEGACY, PER_THREAD];
    for stream in streams {
        launch(stream);
    }
    script.recorded();
    for _ in 0..3 {
        assert!(matches!(drain_shut(SOON), Err(Stalled::NoProgress(_))));
    }
    assert_eq!(script.recorded(), 0);
    for stream in streams {
        script.finish(stream, 1);
    }
    assert!(drain_shut(NEVER).is_ok());
    assert_eq!((script.recorded(), script.violations()), (0, 0));
}

#[test]
fn a_stream_that_a_thread_is_stuck_in_is_left_alone() {
    let (_guard, script) = script();
    let full = stream(true);
    script.stick(full, true);
    let number = full.expose_provenance();
    std::thread::scope(|scope| {
        scope.spawn(move || launch(std::ptr::with_exposed_provenance_mut(number)));
        while gate::inside() == 0 {
            std::thread::yield_now();
        }
        script.asked();
        let Err(Stalled::NoProgress(what)) = drain_shut(SOON) else { panic!("drained") };
        assert!(what.contains("inside"), "{what}");
        assert_eq!(script.asked(), 0, "the driver answers nothing about such a stream before it goes on");
        script.stick(full, false);
    });
    script.finish(full, 1);
    assert!(drain_shut(NEVER).is_ok());
}

#[test]
fn a_drain_is_given_up_although_the_driver_does_not_answer_and_has_no_effect_afterwards() {
    let (_guard, script) = script();
    let (full, captured) = (stream(true), stream(true));
    launch(full);
    script.stick(full, true);
    let Err(Stalled::NoProgress(what)) = drain_shut(SOON) else { panic!("drained") };
    assert!(what.contains("answer about stream"), "{what}");
    // Others need not wait for that answer, and no second question follows the first.
    begin_capture(captured);
    end_capture(captured);
    script.asked();
    for _ in 0..3 {
        assert!(matches!(drain_shut(NEVER), Err(Stalled::NoProgress(_))));
    }
    assert_eq!(script.asked(), 0);
    launch(LEGACY);
    script.stick(full, false);
    script.finish(full, 1);
    // Once it has answered, drains work again, and know of the work since.
    while matches!(drain_shut(SOON), Err(Stalled::NoProgress(what)) if what.contains("answer")) {
        std::thread::yield_now();
    }
    drains_only_after(|| script.finish(LEGACY, 1));
    assert_eq!(script.violations(), 0);
}

#[test]
fn a_stream_whose_destruction_is_refused_stays_in_sight() {
    let (_guard, script) = script();
    let stream = stream(true);
    script.refuse_destroy(true);
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamDestroy_v2(stream) }, 400);
    script.refuse_destroy(false);
    launch(stream);
    drains_only_after(|| script.finish(stream, 1));
}

#[test]
fn a_stream_with_the_handle_of_one_that_is_just_being_destroyed_stays_in_sight() {
    static SECOND: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn create_second() {
        SECOND.store(stream(true).expose_provenance(), Ordering::Relaxed);
    }
    let (_guard, script) = script();
    let first = stream(true);
    script.on_destroy(Some(create_second));
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamDestroy_v2(first) }, 0);
    script.on_destroy(None);
    let second = std::ptr::with_exposed_provenance_mut(SECOND.load(Ordering::Relaxed));
    assert_eq!(first, second, "the handle is used again");
    launch(second);
    drains_only_after(|| script.finish(second, 1));
}

#[test]
fn nothing_from_before_a_reset_is_used_after_it_though_its_handles_are_others_now() {
    let (_guard, script) = script();
    let before = stream(true);
    launch(before);
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamDestroy_v2(before) }, 0);
    assert!(matches!(drain_shut(SOON), Err(Stalled::NoProgress(_))), "an event keeps it in sight");
    // SAFETY: the first device; the application's places for handles.
    unsafe {
        assert_eq!(cuDevicePrimaryCtxReset_v2(0), 0);
        let mut context = std::ptr::null_mut();
        assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 0), 0);
    }
    // The reset has ended the work.
    script.finish(before, 1);
    assert!(drain_shut(NEVER).is_ok());
    let after = stream(true);
    launch(after);
    // SAFETY: a stream of the scripted driver.
    assert_eq!(unsafe { cuStreamDestroy_v2(after) }, 0);
    drains_only_after(|| script.finish(after, 1));
    assert_eq!(script.violations(), 0);
}

#[test]
fn what_a_stream_held_before_a_capture_reached_it_is_waited_for_and_other_waits_cost_no_event() {
    let (_guard, script) = script();
    let (captured, reached, other) = (stream(true), stream(true), stream(true));
    let mut events = [std::ptr::null_mut(); 2];
    for event in &mut events {
        // SAFETY: a place for the handle.
        assert_eq!(unsafe { cuEventCreate(event, 0) }, 0);
    }
    let [inside, outside] = events;
    // SAFETY: events and streams of the scripted driver.
    let wait = |stream, event| assert_eq!(unsafe { cuStreamWaitEvent(stream, event, 0) }, 0);
    // SAFETY: the same.
    let record = |event, stream| assert_eq!(unsafe { cuEventRecord(event, stream) }, 0);
    launch(reached);
    launch(other);
    begin_capture(captured);
    record(inside, captured);
    record(outside, other);
    script.recorded();
    for _ in 0..10 {
        wait(other, outside);
    }
    assert_eq!(script.recorded(), 0, "the capture has nothing to do with that stream");
    wait(reached, inside);
    assert_eq!(script.recorded(), 1);
    script.finish(other, 1);
    drains_only_after(|| script.finish(reached, 1));
    end_capture(reached);
    end_capture(captured);
    assert_eq!(script.violations(), 0);
}

#[test]
fn a_launch_on_several_devices_waits_at_a_shut_gate_whatever_is_captured() {
    let (_guard, script) = script();
    let (captured, used) = (stream(false), stream(true));
    begin_capture(captured);
    gate::shut();
    let number = used.expose_provenance();
    std::thread::scope(|scope| {
        let launching = scope.spawn(move || {
            // SAFETY: all zeros is a valid value of these numbers and pointers.
            let mut list: CUDA_LAUNCH_PARAMS = unsafe { std::mem::zeroed() };
            list.hStream = std::ptr::with_exposed_provenance_mut(number);
            // SAFETY: a list of one.
            assert_eq!(unsafe { cuLaunchCooperativeKernelMultiDevice(&raw mut list, 1, 0) }, 0);
        });
        std::thread::sleep(SOON);
        assert!(!launching.is_finished(), "it passed a shut gate");
        gate::open();
    });
    end_capture(captured);
    drains_only_after(|| script.finish(used, 1));
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
