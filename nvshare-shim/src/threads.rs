//! Threads of the shim's own.

#![expect(unsafe_code, reason = "signals are blocked in threads of ours")]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nvshare_common::probe::ENGINE_THREAD_PREFIX;

use crate::{life, streams};

/// Starts a thread of the shim's own.
///
/// None of them may ever need what a thread of the application may hold while it waits at the gate, which is anything that
/// it holds when it calls the driver: above all the loader's lock, inside constructors. So on these threads
/// - nothing is loaded or looked up (`dlopen`, `dlsym`, `dladdr`): all of the driver is bound before the gate can shut;
/// - thread-local storage that wants a destructor is touched before the thread begins ([`warm_up`]): glibc takes that lock
///   to register one. A thread that is held up there has done nothing yet, so whoever can shut the gate waits first until
///   all are past it ([`await_all`]);
/// - messages are written with one `write`, never through stdio's locks. (Allocating is fine, unwinding too: nobody calls the
///   driver inside `malloc`, and the loader's list is not locked while constructors run.)
/// - and no lock of ours is taken that is held anywhere during a call of the driver.
///
/// For the same reason those that the gate's opening may depend on are started before it can be shut, at the first use: what
/// `first_use` does not prepare may only do what nobody waits for.
///
/// Its name begins with the prefix by which the uprobes tell it apart; it takes no
/// signal, so that the application's handlers never run on it.
pub(crate) fn engine_thread(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let prefix = std::str::from_utf8(ENGINE_THREAD_PREFIX).unwrap_or("nvshare:");
    let mut full = format!("{prefix}{name}");
    full.truncate(15);
    let _blocked = Blocked::all();
    HELD_UP.fetch_add(1, Ordering::AcqRel);
    let started = std::thread::Builder::new().name(full).spawn(move || {
        life::thread_is_ours();
        warm_up();
        HELD_UP.fetch_sub(1, Ordering::AcqRel);
        run();
    });
    if started.is_err() {
        HELD_UP.fetch_sub(1, Ordering::AcqRel);
    }
    started
}

/// Threads of ours that were started and are not past their [`warm_up`].
static HELD_UP: AtomicUsize = AtomicUsize::new(0);

/// Waits until every thread that was started works. On a thread of ours, before it does the first thing that could shut the
/// gate: where the loader is busy for long, in a constructor that uses the card, all that time nothing is managed yet.
pub(crate) fn await_all() {
    debug_assert!(life::is_engine(), "a thread of the application may hold what they are waiting for");
    while HELD_UP.load(Ordering::Acquire) != 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Uses once what keeps something for each thread: the standard library where it waits, and the driver.
fn warm_up() {
    let (_open, never) = std::sync::mpsc::channel::<()>();
    let _ = never.recv_timeout(Duration::from_millis(1));
    drop(streams::Relaxed::new());
    let _ = streams::current_context();
}

/// All signals blocked in this thread, and in those it starts, until the guard goes.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Blocked {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: `sigfillset` initialises `all`, `pthread_sigmask` reads it and initialises `before`.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Blocked(before.assume_init())
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the mask is the one this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}
