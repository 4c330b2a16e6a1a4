//! The gate's core under loom, which tries every interleaving that the memory model allows: while the closer sees
//! nobody inside a shut gate nobody is, and nobody waits at an open one.

#![expect(dead_code, reason = "the model uses the core only in part")]

mod sync {
    //! loom's primitives in the place of the standard ones (`src/gate/sync.rs`).

    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use loom::sync::{Condvar, Mutex};

    /// loom knows no membarrier. It is stronger than a fence here: it puts one into every thread.
    pub(crate) fn light_fence() {
        fence(Ordering::SeqCst);
    }

    macro_rules! const_fn {
        ($($all:tt)*) => { $($all)* };
    }
    pub(crate) use const_fn;
}

#[expect(unreachable_pub, reason = "public where it belongs")]
#[path = "../src/gate/core.rs"]
mod core;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool as PlainBool, Ordering as PlainOrdering};

use self::core::Gate;

/// A gate, and whether memory is gone: plain, so that the model does not order the threads by it.
struct Scene {
    gate: Gate,
    gone: PlainBool,
}

fn scene() -> Arc<Scene> {
    Arc::new(Scene { gate: Gate::new(|| ()), gone: PlainBool::new(false) })
}

fn work(scene: &Scene) {
    let slot = scene.gate.register();
    let pass = scene.gate.enter(slot, || false, || ());
    assert!(!scene.gone.load(PlainOrdering::Relaxed), "work while the memory is gone");
    loom::thread::yield_now();
    assert!(!scene.gone.load(PlainOrdering::Relaxed), "the memory went during the work");
    drop(pass);
}

#[test]
fn while_a_drained_gate_is_shut_nobody_works_and_all_go_on_when_it_opens() {
    loom::model(|| {
        let scene = scene();
        let worker = {
            let scene = scene.clone();
            loom::thread::spawn(move || work(&scene))
        };
        scene.gate.shut(|| ());
        while scene.gate.inside() != 0 {
            loom::thread::yield_now();
        }
        scene.gone.store(true, PlainOrdering::Relaxed);
        loom::thread::yield_now();
        scene.gone.store(false, PlainOrdering::Relaxed);
        scene.gate.open();
        worker.join().unwrap();
    });
}

#[test]
fn a_pass_inside_a_pass_never_waits() {
    loom::model(|| {
        let scene = scene();
        let worker = {
            let scene = scene.clone();
            loom::thread::spawn(move || {
                let slot = scene.gate.register();
                let outer = scene.gate.enter(slot, || false, || ());
                // Whatever the closer does meanwhile.
                drop(scene.gate.enter(slot, || false, || panic!("waited inside a pass")));
                drop(outer);
            })
        };
        scene.gate.shut(|| ());
        while scene.gate.inside() != 0 {
            loom::thread::yield_now();
        }
        scene.gate.open();
        worker.join().unwrap();
    });
}

#[test]
fn a_gate_opened_for_good_is_never_shut_again() {
    loom::model(|| {
        let scene = scene();
        let closer = {
            let scene = scene.clone();
            loom::thread::spawn(move || scene.gate.shut(|| ()))
        };
        scene.gate.open_for_good();
        work(&scene);
        closer.join().unwrap();
        assert!(scene.gate.passable());
    });
}

#[test]
fn default_streams_seen_idle_with_nobody_inside_are_idle_as_long_as_nobody_uses_them() {
    loom::model(|| {
        let scene = scene();
        // Whether work was submitted to a default stream: it never ends. loom's, so that the look may come too early to see it.
        let submitted = Arc::new(sync::AtomicBool::new(false));
        let worker = {
            let (scene, submitted) = (scene.clone(), submitted.clone());
            loom::thread::spawn(move || {
                let pass = scene.gate.enter(scene.gate.register(), || false, || ());
                pass.uses_default();
                submitted.store(true, sync::Ordering::Relaxed);
                drop(pass);
            })
        };
        let uses = scene.gate.default_uses();
        let known_idle = scene.gate.inside() == 0 && !submitted.load(sync::Ordering::Relaxed);
        scene.gate.shut(|| ());
        while scene.gate.inside() != 0 {
            loom::thread::yield_now();
        }
        if known_idle && scene.gate.default_uses() == uses {
            assert!(!submitted.load(sync::Ordering::Relaxed), "work that no drain would wait for");
        }
        scene.gate.open();
        worker.join().unwrap();
    });
}
