//! Forced swaps, a tool for tests: a process without an agent is stopped, and everything it has is swapped out and in
//! again, at intervals (`NVSHARE_DEBUG_SWAP_EVERY`) or when a test says so (`NVSHARE_DEBUG_SWAP_BY`). Beside an agent
//! nothing happens.
//!
//! `NVSHARE_DEBUG_SWAP_BY` is the number of an inherited socket. Each byte that arrives is an order, and is answered by one
//! byte when it was carried out: `s`, out and in again; `o`, out, until a thread waits at the gate or the next order comes;
//! `i`, in. The answer is `+`, or `-` where nothing was moved (a drain that stalled, nothing there, an agent).

#![expect(unsafe_code, reason = "the driver is called")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::device::tasks::Task;
use crate::turn::{dead, run_state, stop, want};
use crate::{config, device, line, log, swap, threads};

/// The stall of a drain that nobody asked for.
const STALL: Duration = Duration::from_secs(2);
/// How long a drain on order may stall: the test waits for it.
const STALL_ON_ORDER: Duration = Duration::from_millis(200);
/// How often it is looked whether a thread waits for what is out.
const LOOK: libc::c_int = 1;

/// Starts what the environment asks for.
pub(super) fn start() {
    if let Some(every) = config::get().debug_swap_every {
        begin("debug", move || {
            loop {
                std::thread::sleep(every);
                swap_everything(STALL);
            }
        });
    }
    if let Some(descriptor) = config::get().debug_swap_by {
        // SAFETY: the test that set the variable gave the descriptor to the shim, and to nobody else.
        let socket = unsafe { File::from_raw_fd(descriptor) };
        begin("debug", move || obey(socket));
    }
}

fn begin(name: &str, run: impl FnOnce() + Send + 'static) {
    let run = move || {
        threads::await_all();
        run();
    };
    if let Err(error) = threads::engine_thread(name, run) {
        log::warning!("cannot start the debugging thread: {error}");
    }
}

/// Obeys until the other end is closed.
fn obey(mut socket: File) {
    let mut order = [0];
    while let Ok(1) = socket.read(&mut order) {
        let done = match order[0] {
            b's' => swap_everything(STALL_ON_ORDER),
            b'o' => put_out(STALL_ON_ORDER),
            _ => bring_in(),
        };
        if socket.write_all(if done { b"+" } else { b"-" }).is_err() {
            return;
        }
        if order[0] == b'o' && done {
            // It waits in the look.
            while !want::is_waiting() && !is_ordered(&socket) {
                std::hint::spin_loop();
            }
            bring_in();
        }
    }
}

/// Whether the next order is there, or comes within a moment.
fn is_ordered(socket: &File) -> bool {
    let mut look = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which lives.
    unsafe { libc::poll(&raw mut look, 1, LOOK) != 0 }
}

/// Stops the process, swaps everything out and in again.
fn swap_everything(stall: Duration) -> bool {
    let Some(held) = hold_back(stall) else { return false };
    for device in device::all() {
        let (answer, told) = channel();
        device.order(Task::Everything(answer));
        match told.recv() {
            Ok(Ok(())) => {}
            // The process ends, most likely.
            Ok(Err(_)) if dead::is_dead() => return false,
            Ok(Err(why)) => log::warning!("a forced swap-out of {} was not complete: {why}", device.id),
            Err(_) => return false,
        }
    }
    swap::wait_until_resident();
    drop(held);
    true
}

/// Stops the process and swaps everything out; it stays out.
fn put_out(stall: Duration) -> bool {
    let Some(held) = hold_back(stall) else { return false };
    for device in device::all() {
        let ((answer, told), (done, left)) = (channel(), channel());
        // One after the other, with nothing between: else what went out would begin to come back.
        device.order(Task::Everything(answer));
        device.order(Task::Withdraw(done));
        let (_, _) = (told.recv(), left.recv());
    }
    drop(held);
    true
}

/// Nothing limits the process any more: the swap threads bring in what is out.
fn bring_in() -> bool {
    for device in device::all() {
        device.state().space.set_terms(|terms| terms.unlimited = true);
        device.wake();
    }
    swap::wait_until_resident();
    run_state::missing() == 0
}

fn hold_back(stall: Duration) -> Option<stop::HeldBack> {
    if line::is_managed() || dead::is_dead() || super::is_bypassed() || device::all().is_empty() {
        return None;
    }
    match stop::hold_back(stall) {
        Ok(held) => Some(held),
        Err(why) => {
            log::debug!("no forced swap: {why}");
            None
        }
    }
}
