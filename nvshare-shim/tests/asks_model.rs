//! Asking and barring under loom, which tries every interleaving that the memory model allows: nobody asks about what is
//! barred, nobody waits for ever.

mod sync {
    //! loom's primitives in the place of the standard ones (`src/streams/sync.rs`).

    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering, fence};

    pub(crate) fn pause() {
        loom::thread::yield_now();
    }
}

#[path = "../src/streams/asks.rs"]
mod asks;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool as PlainBool, Ordering as PlainOrdering};

use self::asks::Asks;

/// Something that may be asked about, and whether it is being taken away: plain, so that the model does not order the
/// threads by it.
struct Scene {
    asks: Asks,
    taken: PlainBool,
}

fn scene() -> Arc<Scene> {
    Arc::new(Scene { asks: Asks::new(), taken: PlainBool::new(false) })
}

fn ask(scene: &Scene) -> Option<()> {
    scene.asks.ask(|| {
        assert!(!scene.taken.load(PlainOrdering::Relaxed), "asked about what is being taken away");
        loom::thread::yield_now();
        assert!(!scene.taken.load(PlainOrdering::Relaxed), "taken away while it was asked about");
    })
}

#[test]
fn nobody_asks_about_what_is_barred_and_everybody_does_afterwards() {
    loom::model(|| {
        let scene = scene();
        let asker = {
            let scene = scene.clone();
            loom::thread::spawn(move || ask(&scene))
        };
        let bar = scene.asks.bar();
        scene.taken.store(true, PlainOrdering::Relaxed);
        loom::thread::yield_now();
        scene.taken.store(false, PlainOrdering::Relaxed);
        drop(bar);
        asker.join().unwrap();
        assert_eq!(ask(&scene), Some(()));
    });
}

#[test]
fn two_who_bar_do_not_wait_for_each_other() {
    loom::model(|| {
        let scene = scene();
        let other = {
            let scene = scene.clone();
            loom::thread::spawn(move || drop(scene.asks.bar()))
        };
        scene.asks.close();
        assert_eq!(ask(&scene), None);
        scene.asks.lift();
        other.join().unwrap();
        assert_eq!(ask(&scene), Some(()));
    });
}
