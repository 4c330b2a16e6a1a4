//! Server-sent events: the state, as it changes, for whoever looks at the status page.
//!
//! A listener first gets what is known now, then each later publication, at most four a second. An event is written once
//! and shared by all listeners; one that reads slowly skips what it missed, so nobody's slowness costs memory.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nvshare_agent_core::snapshot::State;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::health::{Health, Readiness};

/// How many may listen at the same time.
pub(super) const LISTENERS: usize = 64;
/// The shortest time between two events.
const PACE: Duration = Duration::from_millis(250);
/// How many of the latest switches an event carries; `/api/v1/state` has more.
const SWITCHES: usize = 32;

/// Where listeners come from.
#[derive(Clone)]
pub(super) struct Events {
    seats: Arc<Semaphore>,
    latest: watch::Receiver<Bytes>,
}

impl Events {
    /// Nobody listens yet. Nothing is written while that is so.
    pub(super) fn new(state: watch::Receiver<Arc<State>>, health: Health) -> Events {
        let (sender, latest) = watch::channel(Bytes::new());
        let seats = Arc::new(Semaphore::new(LISTENERS));
        tokio::spawn(write(state, health, sender, Arc::clone(&seats)));
        Events { seats, latest }
    }

    /// One more listener, who is told `now` at once; or 503 when there are enough.
    pub(super) fn listen(&self, now: Bytes) -> Response {
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            let why = format!(
                "{LISTENERS} listeners are connected already: close one of the pages, or ask /api/v1/state now and then\n"
            );
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], why).into_response();
        };
        let mut latest = self.latest.clone();
        latest.mark_unchanged();
        let listener = Listener { first: Some(now), latest, _seat: seat };
        let events = futures_util::stream::unfold(listener, Listener::next);
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
        (headers, Body::from_stream(events)).into_response()
    }
}

/// Somebody who listens. The seat is free again when the connection ends.
struct Listener {
    first: Option<Bytes>,
    latest: watch::Receiver<Bytes>,
    _seat: OwnedSemaphorePermit,
}

impl Listener {
    /// Ends when the agent does.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Listener)> {
        let event = if let Some(first) = self.first.take() {
            first
        } else {
            self.latest.changed().await.ok()?;
            self.latest.borrow_and_update().clone()
        };
        Some((Ok(event), self))
    }
}

/// Writes each publication once, while anybody listens, until the conductor is gone.
async fn write(
    mut state: watch::Receiver<Arc<State>>,
    health: Health,
    latest: watch::Sender<Bytes>,
    seats: Arc<Semaphore>,
) {
    while state.changed().await.is_ok() {
        let now = Arc::clone(&state.borrow_and_update());
        if seats.available_permits() == LISTENERS {
            continue;
        }
        latest.send_replace(event(&now, &health.readiness()));
        tokio::time::sleep(PACE).await;
    }
}

/// The state (with its latest switches only) and what is missing, as events.
pub(super) fn event(state: &State, readiness: &Readiness) -> Bytes {
    let mut state = state.clone();
    let old = state.switches.recent.len().saturating_sub(SWITCHES);
    state.switches.recent.drain(..old);
    [named("readiness", readiness), named("state", &state)].concat().into()
}

/// One event. JSON has no line breaks of its own, so one `data` line holds it.
pub(super) fn named(name: &str, data: &impl serde::Serialize) -> Vec<u8> {
    let mut text = format!("event: {name}\ndata: ").into_bytes();
    // Maps with string keys and plain data: there is nothing that cannot be written.
    if serde_json::to_writer(&mut text, data).is_err() {
        return Vec::new();
    }
    text.extend_from_slice(b"\n\n");
    text
}
