//! The swap engine: one thread per device moves extents between the device and their shadows.
//!
//! - [`standing`]: whether the application may run, and with it the gate; [`plan`]: which extents leave, pure;
//! - [`engine`]: the thread; [`calm`]: what it may ask of the driver, and when; [`outward`], [`inward`]: its two pipelines;
//!   [`workshop`], [`stream`], [`prints`]: what it has in the application's context; [`shadow`]:
//!   pinned host memory, in `arena`s, [`spare`]: how much of our own; [`dma`]: who else may use device memory.

mod arena;
pub(crate) mod calm;
pub mod dma;
pub mod engine;
pub mod inward;
pub mod lending;
pub mod outward;
pub mod plan;
pub mod prints;
pub mod shadow;
pub mod spare;
pub mod standing;
pub mod stream;
pub mod workshop;

use crate::device::{self, Device, image};
use crate::memory::ALLOCATIONS;
use crate::turn::dead;
use crate::{log, proc, threads};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvshare_common::units::{DeviceRange, Ticket};

/// How long the debugging tool waits for memory to come back.
const RESIDENT_LIMIT: Duration = Duration::from_secs(10);

/// What a swap thread is told to do.
#[derive(Debug)]
pub enum Order {
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

/// Starts a swap thread for each of so many devices; before the gate can be shut.
pub(crate) fn prepare(devices: usize) {
    for index in 0..devices {
        let (give, given) = channel();
        match threads::engine_thread(&format!("swap{index}"), move || {
            // Lives as long as the process, with a device or without.
            proc::open();
            if let Ok(device) = given.recv() {
                engine::run(device);
            }
        }) {
            Ok(_) => idle().push_back(give),
            Err(error) => log::error!("cannot start a swap thread: {error}"),
        }
    }
}

/// A swap thread takes up the device. Whether there is one.
pub fn start(device: &'static Device) -> bool {
    let thread = idle().pop_front();
    thread.is_some_and(|thread| thread.send(device).is_ok())
}

/// Contexts that may be destroyed by a call that is being made.
static LEAVING: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn leaving() -> MutexGuard<'static, Vec<usize>> {
    LEAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An allocation is made in `context`, which is current: the engine's home, if it has none yet.
pub fn adopt(device: &Device, context: usize) {
    if device.state().home.is_some() {
        return;
    }
    image::make(device);
    let leaving = leaving();
    let mut state = device.state();
    if state.home.is_none() && !leaving.contains(&context) {
        state.home = Some(context);
        drop(state);
        device.wake();
    }
}

/// The engine of `device` has no home: one of the contexts with memory there, of which no call may be ending just now.
fn elect_home(device: &Device) {
    if device.state().home.is_some() {
        return;
    }
    let leaving = leaving();
    let found = ALLOCATIONS.another_context(device.index, &leaving);
    let mut state = device.state();
    if state.home.is_none() && state.leaving.is_empty() {
        state.home = found;
    }
}

/// The engine of `device` has left `context`, and the call that it was left for has been made. Where what the engine has is,
/// there it is at home: whoever ends that context asks it to leave.
fn has_left(device: &Device, context: usize, gone: bool) {
    let leaving = leaving();
    let except: Vec<usize> = leaving.iter().copied().chain([context]).collect();
    let other = ALLOCATIONS.another_context(device.index, &except);
    let mut state = device.state();
    if let Some(at) = state.leaving.iter().position(|left| *left == context) {
        state.leaving.swap_remove(at);
    }
    state.home = if gone { state.home.or(other) } else { Some(context) };
}

/// These contexts may be destroyed by the next call; returns when no engine uses them any more. None does until it is told
/// what came of the call. All are named first: an engine that has left one, and waits for the call, cannot leave another.
pub fn leave_contexts<const N: usize>(contexts: [usize; N]) -> [Left; N] {
    leaving().extend(contexts);
    contexts.map(leave)
}

fn leave(context: usize) -> Left {
    let mut waiting = Vec::new();
    for device in device::all() {
        {
            // Also one that has left it for another call: it comes back where that did not end the context.
            let mut state = device.state();
            if state.home != Some(context) && !state.leaving.contains(&context) {
                continue;
            }
            state.leaving.push(context);
        }
        let ((left, told), (tell, gone)) = (channel(), channel());
        device.order(Order::Leave { context, left, gone });
        // As long as it takes: a copy in a context that is destroyed would corrupt the driver. What is under way ends
        // early, and a thread that ends drops the other end.
        let _ = told.recv();
        waiting.push(tell);
    }
    Left { context, waiting }
}

/// The engines that left a context. Dropped with nothing said, they take it to be gone. Until it is dropped no engine makes
/// the context its home: where it is gone, not before what it had is out of the records.
#[derive(Debug)]
#[must_use]
pub struct Left {
    context: usize,
    waiting: Vec<Sender<bool>>,
}

impl Left {
    /// What came of the call: whether the context is gone.
    pub fn told(&self, gone: bool) {
        for engine in &self.waiting {
            let _ = engine.send(gone);
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let mut leaving = leaving();
        if let Some(at) = leaving.iter().position(|context| *context == self.context) {
            leaving.swap_remove(at);
        }
    }
}

/// Waits until nothing is missing on any device, or it is clear that this takes too long.
pub fn wait_until_resident() {
    let began = std::time::Instant::now();
    while standing::missing() > 0 && !dead::is_dead() && began.elapsed() < RESIDENT_LIMIT {
        std::thread::sleep(Duration::from_micros(200));
    }
}
