//! Pacing.

use std::ffi::c_long;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nvshare::gate;
use nvshare::turn::pace;

use crate::script::{NEVER, SOON, launch, script, stream};

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
