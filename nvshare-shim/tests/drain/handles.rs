//! Handles that the driver gives out again, and what is in a stream when it cannot be asked.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::sync::atomic::{AtomicUsize, Ordering};

use nvshare::cuda::sys::CUDA_LAUNCH_PARAMS;
use nvshare::gate;
use nvshare::turn::drain::Stalled;

use crate::script::{
    NEVER, SOON, begin_capture, cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxRetain, cuEventCreate,
    cuEventRecord, cuLaunchCooperativeKernelMultiDevice, cuStreamDestroy_v2, cuStreamWaitEvent, drain_shut,
    drains_only_after, end_capture, launch, script, stream,
};

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
