//! The gate with real threads and the real barrier.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::core::{FENCED, Gate};
use super::membarrier;

fn gate(fenced: bool) -> &'static Gate {
    let gate: &'static Gate = Box::leak(Box::new(Gate::new(|| ())));
    if fenced || !membarrier::register() {
        gate.change(0, FENCED);
    }
    gate
}

/// Threads pass as fast as they can while a closer shuts, checks that the memory they work on is theirs alone, and
/// opens.
fn stress(fenced: bool) {
    const ROUNDS: usize = 100;
    let gate = gate(fenced);
    let (gone, stop, passes) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let slot = gate.register();
                while !stop.load(Ordering::Relaxed) {
                    let pass = gate.enter(slot, || false, || ());
                    assert!(!gone.load(Ordering::Relaxed), "inside while the gate is shut and drained");
                    drop(gate.enter(slot, || false, || panic!("a nested pass waits")));
                    assert!(!gone.load(Ordering::Relaxed), "inside while the gate is shut and drained");
                    drop(pass);
                    passes.fetch_add(1, Ordering::Relaxed);
                }
                slot.give_back();
            });
        }
        for _ in 0..ROUNDS {
            gate.shut(|| {
                if !gate.is_fenced() {
                    assert!(membarrier::issue());
                }
            });
            while gate.inside() != 0 {
                std::thread::yield_now();
            }
            gone.store(true, Ordering::SeqCst);
            std::hint::spin_loop();
            gone.store(false, Ordering::SeqCst);
            let before = passes.load(Ordering::Relaxed);
            gate.open();
            let limit = Instant::now() + Duration::from_secs(20);
            while passes.load(Ordering::Relaxed) == before {
                assert!(Instant::now() < limit, "nobody passes an open gate");
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn nobody_is_inside_a_shut_gate_with_membarrier() {
    stress(false);
}

#[test]
fn nobody_is_inside_a_shut_gate_without_membarrier() {
    stress(true);
}

#[test]
fn a_call_that_executes_nothing_passes_a_shut_gate_and_others_ask_to_run_once() {
    let gate = gate(false);
    gate.shut(|| assert!(membarrier::issue()));
    let slot = gate.register();
    drop(gate.enter(slot, || true, || panic!("nothing to wait for")));
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let slot = gate.register();
            drop(gate.enter(
                slot,
                || false,
                || {
                    assert_eq!(gate.inside(), 0, "a thread that waits has left the gate");
                    asked.fetch_add(1, Ordering::Relaxed);
                },
            ));
        });
        while asked.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        gate.open();
    });
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn a_thread_that_slept_through_an_opening_asks_to_run_again() {
    let limit = Instant::now() + Duration::from_secs(20);
    for _ in 0..100 {
        let gate = gate(false);
        gate.shut(|| assert!(membarrier::issue()));
        let (asked, passed) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let slot = gate.register();
                drop(gate.enter(slot, || false, || _ = asked.fetch_add(1, Ordering::Relaxed)));
                passed.store(true, Ordering::Relaxed);
            });
            while asked.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            gate.open();
            gate.shut(|| assert!(membarrier::issue()));
            let mut silent = false;
            while asked.load(Ordering::Relaxed) < 2 && !passed.load(Ordering::Relaxed) && !silent {
                silent = Instant::now() > limit;
                std::thread::yield_now();
            }
            gate.open();
            assert!(!silent, "it waits, and whoever shut the gate does not know");
        });
    }
}

#[test]
fn slots_are_used_again_by_later_threads() {
    let gate = gate(false);
    for _ in 0..100 {
        let slot = gate.register();
        drop(gate.enter(slot, || false, || ()));
        slot.give_back();
    }
    let (first, second) = (gate.register(), gate.register());
    first.give_back();
    assert!(std::ptr::eq(gate.register(), first));
    second.give_back();
}

#[test]
fn a_thread_past_its_storage_forgets_its_slot_with_its_outer_pass_and_gives_it_back() {
    static FORGOTTEN: AtomicUsize = AtomicUsize::new(0);
    let gate: &'static Gate =
        Box::leak(Box::new(Gate::new(|| _ = FORGOTTEN.fetch_add(1, Ordering::Relaxed))));
    let slot = gate.register();
    slot.lend();
    let outer = gate.enter(slot, || false, || ());
    drop(gate.enter(slot, || false, || panic!("a nested pass waits")));
    assert_eq!((FORGOTTEN.load(Ordering::Relaxed), gate.inside()), (0, 1));
    drop(outer);
    assert_eq!((FORGOTTEN.load(Ordering::Relaxed), gate.inside()), (1, 0));
    assert!(std::ptr::eq(gate.register(), slot));
}
