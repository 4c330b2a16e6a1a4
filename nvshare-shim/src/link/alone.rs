//! Without the agent (S7). For a while after it went away, grant and lease count as before: an upgraded agent is back in
//! no time. After that a client that is stopped, or misses memory, helps itself: it restores all or nothing, one client at
//! a time for each device, and tries again after a random delay where it does not fit. The same on one device that the
//! agent does not manage, see [`without_agent`].

#![expect(unsafe_code, reason = "the driver is called")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::session;
use crate::descriptors::Own;
use crate::device::tasks::Task;
use crate::device::{self, Device, terms};
use crate::turn::{dead, run_state, stop};
use crate::{config, line, log, threads};

/// The shortest and longest pause between two tries.
const PAUSE_MS: (u64, u64) = (100, 900);

/// The stall of a drain before everything is put out.
const STALL: Duration = Duration::from_secs(2);

/// Held while memory comes back to a device that the agent does not manage: a `Hello` meanwhile would tell of half of it.
static RETURNING: Mutex<()> = Mutex::new(());

/// How long the agent has been away, and what was done about it.
#[derive(Debug)]
pub(super) struct Alone {
    /// When it went away; none: it never was there, or everything is restored.
    since: Option<Instant>,
    patience: Duration,
}

impl Alone {
    pub(super) fn new() -> Alone {
        Alone { since: None, patience: config::get().agent_gone_after }
    }

    /// It is there.
    pub(super) fn forget(&mut self) {
        self.since = None;
        line::set_orphan(false);
    }

    /// It seems to have died: nobody answers at its socket.
    pub(super) fn left_behind() {
        line::set_orphan(true);
    }

    /// It went away just now.
    pub(super) fn lost(&mut self) {
        self.since = Some(Instant::now());
    }

    /// It does not want this client. Says whether that leaves the client without its memory.
    pub(super) fn lost_for_good(&mut self) -> bool {
        self.patience = Duration::ZERO;
        self.lost();
        !run_state::holds_lease() || run_state::missing() > 0
    }

    /// Whether it has been away for too long.
    pub(super) fn is_due(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= self.patience)
    }

    /// A random pause, so that two clients that each hold half do not meet again.
    pub(super) fn pause() {
        let (shortest, longest) = PAUSE_MS;
        let mut random = [0_u8; 8];
        // SAFETY: the buffer has that many bytes.
        unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
        let millis = shortest + u64::from_ne_bytes(random) % (longest - shortest);
        std::thread::sleep(Duration::from_millis(millis));
    }

    /// Whether this client needs help: it lost its agent for too long, or lives without it and found no room.
    pub(super) fn needs_help(&self) -> bool {
        self.is_due() || (line::is_orphan() && self.since.is_none() && run_state::missing() > 0)
    }

    /// One try to bring everything back; says whether the application runs now.
    pub(super) fn help(&mut self) -> bool {
        if dead::is_dead() {
            return true;
        }
        // If it does not all fit, it all goes out again: for that nothing may run.
        let _held = match stop::hold_back(STALL) {
            Ok(held) => Some(held),
            Err(why) => {
                log::debug!("restoring while the application runs: {why}");
                None
            }
        };
        let mut devices = device::all();
        devices.sort_unstable_by_key(|device| device.id);
        let mut locks = Vec::new();
        for device in &devices {
            match lock(device) {
                Ok(Some(held)) => locks.push(held),
                Ok(None) => {
                    log::debug!("another client is restoring itself on {}", device.id);
                    return false;
                }
                Err(error) => log::debug!("restoring without a lock for {}: {error}", device.id),
            }
        }
        for (index, device) in devices.iter().enumerate() {
            let (answer, told) = channel();
            device.order(Task::Restore(answer));
            if !told.recv().unwrap_or(false) {
                let waits = devices[..index].iter().map(|restored| {
                    let (done, told) = channel();
                    restored.order(Task::Withdraw(done));
                    told
                });
                // Before the next `Hello`, which tells the grants that are left.
                for told in waits.collect::<Vec<_>>() {
                    let _ = told.recv();
                }
                return false;
            }
        }
        log::info!("the agent stayed away: running without it");
        self.since = None;
        line::set_orphan(true);
        session::unmanaged();
        run_state::give_lease();
        true
    }
}

/// While the guard lives nothing comes back to devices that the agent does not manage.
pub(super) fn keep_still() -> MutexGuard<'static, ()> {
    RETURNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent does not manage this device: it is used as without one. What is missing there comes back on a thread of its
/// own, because the agent's orders for other devices go on.
pub(super) fn without_agent(device: &'static Device) {
    let missing = {
        let mut state = device.state();
        let missing = state.space.accounts().missing;
        state.space.set_terms(|terms| {
            terms.limit = None;
            terms.unlimited = missing == 0;
        });
        missing
    };
    device.wake();
    if missing == 0 {
        return;
    }
    let given = restorer().as_ref().is_some_and(|restorer| restorer.send(device).is_ok());
    if !given {
        // As piece by piece as there is room, then.
        device.state().space.set_terms(|terms| terms.unlimited = true);
        device.wake();
    }
}

/// Who restores devices that the agent does not manage.
fn restorer() -> MutexGuard<'static, Option<Sender<&'static Device>>> {
    static RESTORER: Mutex<Option<Sender<&'static Device>>> = Mutex::new(None);
    RESTORER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread of [`without_agent`]; before the gate can be shut.
pub(super) fn prepare() {
    let mut restorer = restorer();
    if restorer.is_some() {
        return;
    }
    let (give, given) = channel();
    match threads::engine_thread("alone", move || restore(&given)) {
        Ok(_) => *restorer = Some(give),
        Err(error) => log::warning!(
            "cannot start a thread that restores devices: {error}; where the agent leaves one they come back piece by piece"
        ),
    }
}

/// Tries each device in turn until all of it is back.
fn restore(given: &Receiver<&'static Device>) {
    let mut waiting: VecDeque<&'static Device> = VecDeque::new();
    loop {
        let Some(device) = waiting.pop_front() else {
            match given.recv() {
                Ok(device) => waiting.push_back(device),
                Err(_) => return,
            }
            continue;
        };
        if !come_back(device) {
            waiting.push_back(device);
            Alone::pause();
        }
        waiting.extend(given.try_iter());
    }
}

/// One try to bring everything back to one device; says whether there is no need for another.
fn come_back(device: &'static Device) -> bool {
    let _returning = keep_still();
    if !terms::is_unmanaged(device.id) || dead::is_dead() {
        return true;
    }
    // For the case that it does not all fit: for that nothing may run.
    let _held = stop::hold_back(STALL).ok();
    let _lock = match lock(device) {
        Ok(None) => return false,
        Ok(lock) => lock,
        Err(error) => {
            log::debug!("restoring without a lock for {}: {error}", device.id);
            None
        }
    };
    let (answer, told) = channel();
    device.order(Task::Restore(answer));
    told.recv().unwrap_or(false)
}

/// Held while it lives. Given back by name: a copy that a child got from a fork would keep it.
struct Lock(Own);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Ok(lock) = self.0.get() {
            let _ = flock(lock, FlockOperation::Unlock);
        }
    }
}

/// The lock of one device among all clients of the node: a file beside the agent's socket, or, where there is none, that
/// directory. Reading rights are enough. `Ok(None)`: somebody else has it.
fn lock(device: &Device) -> rustix::io::Result<Option<Lock>> {
    let directory = config::get().socket.parent().map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let file = directory.join(format!("device-{}.lock", device.id));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = open(&file, flags, Mode::empty()).or_else(|_| open(&directory, flags, Mode::empty()))?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(Own::new(opened)?))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error),
    }
}
