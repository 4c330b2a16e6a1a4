//! On what terms this process uses each device: the agent says so for each one that is met, and until it has said
//! anything nobody knows whether there will ever be a grant. So each device has a deadline, after which it is used as
//! without an agent: an agent that is there is never worse than none.
//!
//! Terms of one session end with it; the next `Hello` asks anew.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvshare_common::ids::DeviceId;
use nvshare_common::protocol::ToAgent;

use crate::device::{self, Device};
use crate::line;

/// How long the agent may take to say anything of a device.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long the first use of a device waits for that: a program that is told nothing promises itself the whole card.
const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// Something that the agent grants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Term {
    Grant(u64),
    Limit(u64),
}

impl Term {
    fn apply(self, device: &Device) {
        device.state().space.set_terms(|terms| match self {
            Term::Grant(bytes) => terms.granted += bytes,
            Term::Limit(bytes) => terms.limit = Some(bytes),
        });
        device.wake();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing was said yet; it was asked then.
    Asked(Instant),
    Managed,
    /// Used as without an agent.
    Unmanaged,
}

#[derive(Debug)]
struct Terms {
    devices: BTreeMap<DeviceId, Kind>,
    /// Grants and limits for devices that this process has not met yet.
    early: Vec<(DeviceId, Term)>,
}

static TERMS: Mutex<Terms> = Mutex::new(Terms { devices: BTreeMap::new(), early: Vec::new() });
static SAID: Condvar = Condvar::new();

fn terms() -> MutexGuard<'static, Terms> {
    TERMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session begins: what an earlier agent said no longer counts, and of all devices in the `Hello` something has to be
/// said.
pub(crate) fn begin(devices: &[&Device]) {
    let mut terms = terms();
    let now = Instant::now();
    terms.early.clear();
    terms.devices = devices.iter().map(|device| (device.id, Kind::Asked(now))).collect();
}

/// A device is used for the first time: `known` makes it known to everybody, under the terms that hold. In a session the
/// agent is asked for them, and this waits a moment for the answer.
pub(crate) fn met(device: &Device, known: impl FnOnce()) {
    let mut asks = false;
    line::while_managed(|managed| {
        asks = managed && device.is_manageable();
        if asks {
            device.state().space.set_terms(|terms| terms.unlimited = false);
        }
        known();
        if asks {
            // After it is known: what is said of it before is early, what comes later finds it.
            ask(device);
        }
    });
    if asks && line::is_open() {
        line::send(&ToAgent::Met { device: device.id });
        await_first(device.id);
    }
}

/// The device is met and known, in a session: something has to be said of it, unless it was said before.
fn ask(device: &Device) {
    let mut terms = terms();
    let early: Vec<_> = terms.early.extract_if(.., |(id, _)| *id == device.id).collect();
    let kind = if early.is_empty() { Kind::Asked(Instant::now()) } else { Kind::Managed };
    // What was said after it was known was said for good.
    terms.devices.entry(device.id).or_insert(kind);
    for (_, term) in early {
        term.apply(device);
    }
}

/// Waits a moment for the first word on a device that was asked for.
fn await_first(id: DeviceId) {
    let asked = |terms: &mut Terms| matches!(terms.devices.get(&id), Some(Kind::Asked(_)));
    drop(SAID.wait_timeout_while(terms(), FIRST_LIMIT, asked));
}

/// The agent granted or limited something. False: the device runs unmanaged, and only a new `Hello` can change that.
pub(crate) fn heard(id: DeviceId, term: Term) -> bool {
    // Held over the look-up: a device that is met meanwhile takes up what is early afterwards.
    let mut terms = terms();
    if terms.devices.get(&id) == Some(&Kind::Unmanaged) {
        return false;
    }
    match device::by_id(id) {
        Some(device) => {
            terms.devices.insert(id, Kind::Managed);
            term.apply(device);
        }
        None => terms.early.push((id, term)),
    }
    drop(terms);
    SAID.notify_all();
    true
}

/// The agent does not manage this device. False: that was known.
pub(crate) fn unmanaged(id: DeviceId) -> bool {
    let news = terms().devices.insert(id, Kind::Unmanaged) != Some(Kind::Unmanaged);
    SAID.notify_all();
    news
}

/// Whether the device runs without the agent of this session.
pub(crate) fn is_unmanaged(id: DeviceId) -> bool {
    terms().devices.get(&id) == Some(&Kind::Unmanaged)
}

/// The devices of which nothing was said in time.
pub(crate) fn overdue() -> Vec<DeviceId> {
    let late = |kind: &Kind| matches!(kind, Kind::Asked(at) if at.elapsed() >= DEADLINE);
    terms().devices.iter().filter(|(_, kind)| late(kind)).map(|(id, _)| *id).collect()
}

/// How long until something may be overdue.
pub(crate) fn until_overdue() -> Option<Duration> {
    let left = |kind: &Kind| match kind {
        Kind::Asked(at) => Some(DEADLINE.saturating_sub(at.elapsed())),
        Kind::Managed | Kind::Unmanaged => None,
    };
    terms().devices.values().filter_map(left).min()
}
