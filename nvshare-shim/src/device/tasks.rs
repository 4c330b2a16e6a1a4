//! What the swap threads are told to do, one thread for each device.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvshare_common::bytes::DeviceRange;
use nvshare_common::ids::Ticket;

use super::Device;

/// What a swap thread is told to do.
#[derive(Debug)]
pub enum Task {
    /// Give back `bytes` of the grant, by swapping out what it takes; the client is stopped.
    SwapOut {
        /// For the answers.
        ticket: Ticket,
        /// How much.
        bytes: u64,
        /// A hint.
        coldest: Vec<DeviceRange>,
    },
    /// Swap out everything into arenas of our own (no agent; the client is stopped). Answers whether all of it is out.
    Everything(Sender<Result<(), String>>),
    /// There is no agent: bring in everything; if it does not fit, put it all out again. Answers whether it fitted.
    Restore(Sender<bool>),
    /// Put everything out, as after a `Restore` that failed: another device of this process had no room. Told when done.
    Withdraw(Sender<()>),
    /// Give up host memory.
    Trim {
        /// How much.
        bytes: u64,
    },
    /// The context may be destroyed by the application's next call.
    Leave {
        /// Which.
        context: usize,
        /// Told when the engine uses it no more.
        left: Sender<()>,
        /// Says after the call whether it is gone.
        gone: Receiver<bool>,
    },
}

/// Swap threads that have no device yet.
fn idle() -> MutexGuard<'static, VecDeque<Sender<&'static Device>>> {
    static IDLE: Mutex<VecDeque<Sender<&'static Device>>> = Mutex::new(VecDeque::new());
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A swap thread waits for a device at the other end.
pub(crate) fn offer(thread: Sender<&'static Device>) {
    idle().push_back(thread);
}

/// A swap thread takes up the device. Whether there is one.
pub(super) fn start(device: &'static Device) -> bool {
    let thread = idle().pop_front();
    thread.is_some_and(|thread| thread.send(device).is_ok())
}
