//! The control thread: connects to the agent, says what the process holds, obeys, and connects again every second. With
//! no agent the application runs bare; [`alone`] is about an agent that went away and left the client without its memory.
//!
//! Lock order: see the head of the library.

#![expect(unsafe_code, reason = "the driver is called")]

mod alone;
mod door;
mod forced;
mod last;
mod session;
pub(crate) mod share;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{DeviceId, Ticket};
use nvshare_common::protocol::{Purpose, ToAgent, ToShim};

use self::alone::Alone;
use self::door::Door;
use self::session::{End, Incoming, Session};
use crate::allocation::unswappable;
use crate::cuda::sys;
use crate::descriptors::Own;
use crate::device::tasks::Task;
use crate::device::terms::{self, Term};
use crate::device::{self, sizes};
use crate::driver::driver;
use crate::turn::{pace, run_state, stop, want};
use crate::{config, line, log, shadow, threads};

/// How long `cuInit` waits for the agent's first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// How often a lost agent is looked for.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long a knock at the back door is waited for between two looks for an agent.
const KNOCK: Duration = Duration::from_millis(100);
/// How long a driver call that failed for lack of memory waits for room, all in all: somebody may have to be stopped and swapped
/// out. The agent gives up a little earlier.
pub(crate) const ROOM_LIMIT: Duration = Duration::from_secs(35);
/// How often it looks whether a new agent is there.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// An agent found driver work that did not pass the shim: nothing of this process is moved any more (see
/// [`ToShim::Bypassed`]).
static BYPASSED: AtomicBool = AtomicBool::new(false);

/// Starts what may have to work while the gate is shut; before it can be.
pub(crate) fn prepare() {
    alone::prepare();
    last::prepare();
}

/// Takes up the conversation, at the first `cuInit`. Waits a moment for the agent's answer if there is one.
pub fn start() {
    let (tried, told) = channel();
    let exists = config::get().socket.exists();
    match threads::engine_thread("link", move || run(&tried)) {
        Ok(_) if exists => {
            let _ = told.recv_timeout(FIRST_ANSWER);
        }
        Ok(_) => {}
        Err(error) => {
            log::warning!("cannot start the control thread: {error}; running without nvshare's agent");
        }
    }
    forced::start();
}

/// A driver call failed for lack of memory. Asks the agent for room for `bytes` on the device of that number, or of the current
/// context, waits for the answer until `deadline`, and says whether trying again is worth it.
pub fn want_room(ordinal: Option<sys::CUdevice>, bytes: u64, deadline: Instant) -> bool {
    let ordinal = ordinal.or_else(|| {
        let mut ordinal = 0;
        // SAFETY: `ordinal` is where the answer goes.
        unsafe { driver().cuCtxGetDevice(&raw mut ordinal) }.ok().then_some(ordinal)
    });
    let Some(device) = ordinal.and_then(device::of_ordinal) else { return false };
    loop {
        while !line::is_open() {
            // An agent that is being replaced is back soon, and nobody else can make room.
            if !(line::is_managed() || line::is_orphan()) || Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(ROOM_PAUSE);
        }
        let limit = deadline.saturating_duration_since(Instant::now());
        let ask = |ticket| ToAgent::WantRoom { ticket, device: device.id, bytes: Bytes(bytes) };
        match line::answered(ask, limit) {
            Ok(made) => return made,
            Err(RecvTimeoutError::Timeout) => return false,
            // The agent went away: another one is asked.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(ROOM_PAUSE),
        }
    }
}

/// Whether memory of this process must stay where it is, whoever orders what: work was seen that no gate stops.
pub fn is_bypassed() -> bool {
    BYPASSED.load(Ordering::Acquire)
}

/// A device runs without the agent of this session: what is missing there comes back as soon as there is room.
fn unmanage(id: DeviceId, why: &str) {
    if !terms::unmanaged(id) {
        return;
    }
    sizes::unlimited(id);
    let Some(device) = device::by_id(id) else { return };
    log::warning!("{id} is used as without an agent: {why}");
    alone::without_agent(device);
}

fn run(tried: &Sender<()>) {
    threads::await_all();
    let mut alone = Alone::new();
    let mut said = false;
    let mut back_door = None;
    loop {
        let opened = match knocked(&mut back_door) {
            Some(socket) => Session::begin(socket),
            None => Session::open(),
        };
        match opened {
            Ok(mut session) => {
                said = false;
                log::info!("connected to the agent as client {}", session.client().0);
                // Before the application's first call returns: frameworks ask once how much there is.
                let (limits, sizes) = session.terms();
                for (device, bytes) in sizes {
                    sizes::sized(device, bytes.0);
                }
                for (device, bytes) in limits {
                    // A device of before of which nothing was said yet, or one that is not met: this cannot be refused.
                    let _ = on_device(device, Term::Limit(bytes.0));
                }
                let _ = tried.send(());
                alone.forget();
                want_what_is_missing();
                unswappable::forget_said();
                let end = serve(&mut session);
                session.close();
                pace::set(false);
                log::info!("the agent is gone: {end}");
                alone.lost();
            }
            Err(End::Refused(why)) => {
                log::warning!("the agent refused this process, which runs without it: {why}");
                let _ = tried.send(());
                // It will not be asked again; what is not resident comes back as soon as there is room.
                if alone.lost_for_good() {
                    while !alone.help() {
                        Alone::pause();
                    }
                }
                session::unmanaged();
                run_state::give_lease();
                last::watch();
            }
            Err(end) => {
                // Who never had an agent runs as without nvshare.
                if end.leaves_orphans() && line::was_managed() {
                    Alone::left_behind();
                }
                if !std::mem::replace(&mut said, true) {
                    log::info!("no agent: {end}; looking for one every second");
                }
                let _ = tried.send(());
            }
        }
        last::end_if_alone();
        if alone.needs_help() && !alone.help() {
            Alone::pause();
        } else {
            std::thread::sleep(RECONNECT);
        }
    }
}

/// Where no agent can ever be reached by its path: the socket that one has taken the other end of.
fn knocked(back_door: &mut Option<Door>) -> Option<Own> {
    if back_door.is_none() && door::is_needed() {
        *back_door = Door::open().inspect_err(|error| log::warning!("no back door: {error}")).ok();
    }
    match back_door.take()?.wait(KNOCK) {
        Ok(socket) => Some(socket),
        Err(door) => {
            *back_door = Some(door);
            None
        }
    }
}

/// After a `Hello` the agent knows what there is, but not who waits.
fn want_what_is_missing() {
    if want::is_waiting() {
        want::want_work();
    } else if run_state::missing() > 0 {
        for device in device::all() {
            let total = device.state().space.accounts().needed();
            line::send(&ToAgent::Want {
                device: device.id,
                total: Bytes(total),
                purpose: Purpose::Allocation,
            });
        }
    }
}

fn serve(session: &mut Session) -> End {
    loop {
        last::end_if_alone();
        for device in terms::overdue() {
            unmanage(device, "the agent says nothing of it");
        }
        match session.receive(terms::until_overdue()) {
            Ok(Some(Incoming { message, descriptor })) => {
                let text = format!("{message:?}");
                // A mistake of ours must not end the conversation.
                match catch_unwind(AssertUnwindSafe(|| obey(message, descriptor))) {
                    Ok(Ok(())) => {}
                    Ok(Err(end)) => return end,
                    Err(_) => log::error!("obeying {text} met an error of our own; please report it"),
                }
            }
            Ok(None) => {}
            Err(end) => return end,
        }
    }
}

/// The error ends the session: a new one begins at once.
fn obey(message: ToShim, descriptor: Option<OwnedFd>) -> Result<(), End> {
    log::debug!("agent: {message:?}");
    match message {
        ToShim::Unmanaged { device, why } => unmanage(device, &why),
        ToShim::Bypassed => {
            if !BYPASSED.swap(true, Ordering::AcqRel) {
                log::warning!("driver calls of this process do not pass nvshare: its memory is never moved");
            }
        }
        ToShim::Limit { device, bytes } => on_device(device, Term::Limit(bytes.0))?,
        ToShim::Size { device, bytes } => sizes::sized(device, bytes.0),
        ToShim::Grant { device, bytes } => on_device(device, Term::Grant(bytes.0))?,
        ToShim::Run => run_again(),
        ToShim::Stop { ticket, stall_ms } => stop(ticket, Duration::from_millis(stall_ms.into())),
        ToShim::Pace { on } => pace::set(on),
        ToShim::SwapOut { ticket, .. } if is_bypassed() => {
            line::send(&ToAgent::SwapFailed {
                ticket,
                why: "driver calls of this process do not pass nvshare".into(),
            });
        }
        ToShim::SwapOut { ticket, device, bytes, coldest } => match device::by_id(device) {
            Some(device) => device.order(Task::SwapOut { ticket, bytes: bytes.0, coldest }),
            None => line::send(&ToAgent::SwapFailed { ticket, why: "nothing is held on that device".into() }),
        },
        ToShim::Reclaim { ticket, device } => reclaim(ticket, device),
        ToShim::Arena { arena, bytes } => {
            let offered = match descriptor {
                Some(file) => shadow::offer(Some(arena), file),
                None => Err(format!("an arena of {bytes} came without its descriptor")),
            };
            if let Err(why) = offered {
                log::warning!("{why}");
                line::send(&ToAgent::ArenaReturned { arena });
            }
        }
        ToShim::Trim { bytes } => {
            if let Some(device) = device::all().first() {
                device.order(Task::Trim { bytes: bytes.0 });
            }
        }
        ToShim::Room { ticket, made } => line::answer(ticket, made),
    }
    Ok(())
}

fn on_device(id: DeviceId, term: Term) -> Result<(), End> {
    if let Term::Limit(bytes) = term {
        sizes::limited(id, bytes);
    }
    if terms::heard(id, term) {
        return Ok(());
    }
    Err(End::Closed(format!("{id} is managed from now on, which begins with saying what is held there")))
}

fn run_again() {
    run_state::give_lease();
    for device in device::all() {
        let state = device.state();
        let complete = state.space.accounts().missing == 0 && !state.announce;
        drop(state);
        if complete {
            line::send(&ToAgent::Resident { device: device.id, copied: Bytes::ZERO });
        }
    }
}

fn stop(ticket: Ticket, stall: Duration) {
    let began = Instant::now();
    match stop::stop(stall) {
        Ok(()) => {
            log::debug!("stopped within {:?}", began.elapsed());
            line::send(&ToAgent::Stopped { ticket });
            if want::is_waiting() {
                want::want_work();
            }
        }
        Err(why) => {
            log::info!("not stopped: {why}");
            line::send(&ToAgent::DrainStalled { ticket });
        }
    }
}

fn reclaim(ticket: Ticket, id: DeviceId) {
    if let Some(device) = device::by_id(id) {
        line::release(Some(ticket), id, || device.state().space.give_up_slack(u64::MAX));
    }
    line::send(&ToAgent::SwapOutDone { ticket, copied: Bytes::ZERO, clean: Bytes::ZERO });
}
