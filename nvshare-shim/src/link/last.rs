//! A program may end its main thread by `pthread_exit`; it ends, with 0, when its last thread has. Threads of ours are not
//! its own: where only they are left, we end it. (A driver's thread is no thread of ours: then it goes on, as bare.)

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::descriptors::Own;

/// So often it is looked.
const LOOK: Duration = Duration::from_secs(2);

/// What the kernel says of the main thread, which is kept open: to open it each time would take a number that the application
/// may count on.
static MAIN: OnceLock<Option<Own>> = OnceLock::new();

pub(super) fn prepare() {
    MAIN.get_or_init(|| Own::new(std::fs::File::open("/proc/self/stat").ok()?.into()).ok());
}

/// Looks now and then, for ever.
pub(super) fn watch() -> ! {
    loop {
        end_if_alone();
        std::thread::sleep(LOOK);
    }
}

/// Ends the process if none but threads of ours are left. Looks now and then, however often it is called.
pub(super) fn end_if_alone() {
    static LOOKED: Mutex<Option<Instant>> = Mutex::new(None);
    let mut looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    if looked.is_some_and(|looked| looked.elapsed() < LOOK) {
        return;
    }
    *looked = Some(Instant::now());
    drop(looked);
    if main_thread_ended() && others_are_ours() {
        // SAFETY: what the C library does when the last thread ends; nobody is left who could be disturbed by it.
        unsafe { libc::exit(0) };
    }
}

fn main_thread_ended() -> bool {
    let mut text = [0; 64];
    let Some(main) = MAIN.get().and_then(Option::as_ref) else { return false };
    let read = main.get().and_then(|main| rustix::io::pread(main, &mut text, 0));
    // pid (name) state
    let after = |length: usize| {
        let text = &text[..length];
        text.iter().rposition(|byte| *byte == b')').and_then(|at| text.get(at + 2)).copied()
    };
    read.is_ok_and(|length| after(length) == Some(b'Z'))
}

fn others_are_ours() -> bool {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return false };
    let main = std::process::id().to_string();
    for task in tasks {
        let Ok(task) = task else { return false };
        if task.file_name().as_encoded_bytes() == main.as_bytes() {
            continue;
        }
        match std::fs::read(task.path().join("comm")) {
            Ok(name) if name.starts_with(nvshare_common::probe::ENGINE_THREAD_PREFIX) => {}
            // It ended meanwhile, or it is not ours.
            _ => return false,
        }
    }
    true
}
