//! The drain in front of a driver whose work is finished when the test says so: what it waits for, what it leaves alone,
//! and when it gives up.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

mod handles;
mod paced;
#[path = "../programs/mod.rs"]
mod programs;
mod script;

use std::process::Command;
use std::time::Duration;

use nvshare::cuda::CUresult;
use nvshare::turn::drain::{Stalled, drain};
use nvshare::{gate, turn};

use crate::script::{
    LEGACY, NEVER, PER_THREAD, SOON, begin_capture, cuStreamDestroy_v2, drain_shut, drains_only_after,
    end_capture, launch, script, stream,
};

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
