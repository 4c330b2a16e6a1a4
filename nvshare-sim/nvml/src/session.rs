//! Initialisation: as often as it is asked for, undone by as many shutdowns.

use std::ffi::c_uint;
use std::sync::{Arc, Mutex, PoisonError};

use nvshare_sim_card::{Bus, Cards};

use crate::{Outcome, Return, export};

struct Session {
    cards: Arc<Cards>,
    /// The cards that were there when it began: NVML numbers these, and hears of others when it starts again.
    listed: Arc<[usize]>,
    users: usize,
}

static SESSION: Mutex<Option<Session>> = Mutex::new(None);

/// The cards, while initialised.
pub(crate) fn cards() -> Result<Arc<Cards>, Return> {
    let session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    session.as_ref().map(|session| Arc::clone(&session.cards)).ok_or(Return::Uninitialized)
}

/// The cards that NVML numbers, by their places.
pub(crate) fn listed() -> Result<Arc<[usize]>, Return> {
    let session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    session.as_ref().map(|session| Arc::clone(&session.listed)).ok_or(Return::Uninitialized)
}

fn start() -> Outcome {
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(session) = &mut *session {
        session.users += 1;
        return Ok(());
    }
    let cards = Cards::from_environment().map_err(|error| {
        eprintln!("nvshare-sim: {error}");
        Return::DriverNotLoaded
    })?;
    let all = 0..cards.config().cards as usize;
    let listed = all.filter(|card| cards.bus(*card) != Bus::Unlisted).collect();
    *session = Some(Session { cards: Arc::new(cards), listed, users: 1 });
    Ok(())
}

fn stop() -> Outcome {
    let mut session = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    let users = &mut session.as_mut().ok_or(Return::Uninitialized)?.users;
    *users -= 1;
    if *users == 0 {
        *session = None;
    }
    Ok(())
}

export! {
    fn nvmlInit() {
        start()
    }

    fn nvmlInit_v2() {
        start()
    }

    fn nvmlInitWithFlags(_flags: c_uint) {
        start()
    }

    fn nvmlShutdown() {
        stop()
    }
}
