//! The pages of the agent, for Prometheus, Kubernetes and people. All of them only read.
//!
//! | route | answer |
//! | --- | --- |
//! | `/` | the status page, live |
//! | `/api` | this list, as text |
//! | `/metrics` | every series, in Prometheus' text format |
//! | `/livez` | 200 while the conductor works, 503 when it has not published for too long |
//! | `/readyz`, `/healthz` | 200 or 503, and as JSON what is missing, why, and the remedy |
//! | `/api/v1/state` | everything the agent knows, as JSON |
//! | `/api/v1/history` | who did what in the last five minutes, second by second, and the switches of that time |
//! | `/api/v1/events` | server-sent events: `history` once, then `state` and `readiness` as they change |

mod events;
mod history;
mod options;
mod page;

mod bounded;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use nvshare_agent_core::snapshot::State;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use self::options::Options;

use self::bounded::Bounded;
use self::events::Events;
use self::history::History;
use crate::health::Health;
use crate::metrics::Metrics;

/// The conductor publishes every few seconds even if nothing happens; silent for this long, it hangs.
const SILENCE: Duration = Duration::from_secs(30);

const INDEX: &str =
    "nvshare-agent: processes share a GPU whose memory is smaller than the sum of what they use

/                 the status page, for a browser
/metrics          every series, for Prometheus
/livez            is the agent alive?
/readyz           is it ready, and which parts are missing? (/healthz is the same)
/api/v1/state     everything it knows, as JSON
/api/v1/history   the last five minutes, second by second, as JSON
/api/v1/events    the state as it changes, as server-sent events

On the node: `nvshare-agent status`, `nvshare-agent top`, `nvshare-agent set lease-floor=200ms`
";

/// The agent cannot be seen from outside.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another address with {flag}")]
pub struct ListenError {
    address: SocketAddr,
    flag: &'static str,
    source: io::Error,
}

/// What the probes ask.
#[derive(Clone)]
struct Probed {
    state: watch::Receiver<Arc<State>>,
    health: Health,
    /// When the conductor began, as far as these pages know.
    began: Instant,
}

/// What the pages show.
#[derive(Clone)]
struct Pages {
    probed: Probed,
    metrics: Arc<Metrics>,
    history: Arc<Mutex<History>>,
    events: Events,
}

impl Pages {
    fn new(state: watch::Receiver<Arc<State>>, health: Health, began: Instant) -> Pages {
        let metrics = Arc::new(Metrics::new(state.clone(), health.clone()));
        let events = Events::new(state.clone(), health.clone());
        Pages { probed: Probed { state, health, began }, metrics, history: Arc::default(), events }
    }
}

/// Listens on `address`, which `flag` names.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, flag, source })
}

/// Serves the pages until dropped. If it ends it says why.
pub async fn serve(
    listener: TcpListener,
    state: watch::Receiver<Arc<State>>,
    health: Health,
) -> Option<String> {
    let pages = Pages::new(state.clone(), health, Instant::now());
    tokio::spawn(remember(state, Arc::clone(&pages.history)));
    let routes = routes(pages);
    // Errors of single connections are axum's; this ends only where accepting is impossible for good.
    let ended = axum::serve(Bounded::new(listener), routes).await;
    ended.err().map(|error| format!("the HTTP pages are gone: {error}"))
}

/// Serves only what Kubernetes and systemd ask, on a port of its own, until dropped: however many connections the pages
/// have, these are answered.
pub async fn probes(
    listener: TcpListener,
    state: watch::Receiver<Arc<State>>,
    health: Health,
) -> Option<String> {
    let probed = Probed { state, health, began: Instant::now() };
    let routes = Router::new()
        .route("/livez", get(async |Shared(probed): Shared<Probed>| probed.livez()))
        .route("/readyz", get(async |Shared(probed): Shared<Probed>| probed.readyz()))
        .route("/healthz", get(async |Shared(probed): Shared<Probed>| probed.readyz()))
        .with_state(probed);
    let ended = axum::serve(Bounded::new(listener), routes).await;
    ended.err().map(|error| format!("the probes' port is gone: {error}"))
}

fn routes(pages: Pages) -> Router {
    Router::new()
        .route("/", get(async || page::page()))
        .route("/api", get(async || INDEX))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(readyz))
        .route("/api/v1/state", get(state))
        .route("/api/v1/history", get(history))
        .route("/api/v1/events", get(events))
        .with_state(pages)
}

async fn metrics(Shared(pages): Shared<Pages>) -> Response {
    match pages.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the metrics: {error}\n"))
            .into_response(),
    }
}

async fn livez(Shared(pages): Shared<Pages>) -> (StatusCode, String) {
    pages.probed.livez()
}

async fn readyz(Shared(pages): Shared<Pages>) -> Response {
    pages.probed.readyz()
}

impl Probed {
    fn livez(&self) -> (StatusCode, String) {
        let dead = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
        // The conductor owns the sending half: it is gone only when the conductor is.
        if self.state.has_changed().is_err() {
            return dead("the conductor ended\n".to_owned());
        }
        let silence = self.began.elapsed().as_secs_f64() - self.state.borrow().up_seconds;
        if silence > SILENCE.as_secs_f64() {
            return dead(format!("the conductor has published nothing for {silence:.0} s\n"));
        }
        (StatusCode::OK, "alive\n".to_owned())
    }

    fn readyz(&self) -> Response {
        let readiness = self.health.readiness();
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(readiness)).into_response()
    }
}

async fn state(Shared(pages): Shared<Pages>) -> Response {
    let state = Arc::clone(&pages.probed.state.borrow());
    Json(&*state).into_response()
}

async fn history(Shared(pages): Shared<Pages>) -> Response {
    let state = Arc::clone(&pages.probed.state.borrow());
    let history = pages.history.lock().unwrap_or_else(PoisonError::into_inner);
    Json(history.answer(&state)).into_response()
}

async fn events(Shared(pages): Shared<Pages>) -> Response {
    let state = Arc::clone(&pages.probed.state.borrow());
    let mut now = {
        let history = pages.history.lock().unwrap_or_else(PoisonError::into_inner);
        events::named("history", &history.answer(&state))
    };
    now.extend_from_slice(&events::event(&state, &pages.probed.health.readiness()));
    pages.events.listen(now.into())
}

/// Keeps the history until the conductor is gone.
async fn remember(mut state: watch::Receiver<Arc<State>>, history: Arc<Mutex<History>>) {
    while state.changed().await.is_ok() {
        let now = Arc::clone(&state.borrow_and_update());
        history.lock().unwrap_or_else(PoisonError::into_inner).record(&now);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::health::{Part, Readiness};

    struct Running {
        address: SocketAddr,
        state: Option<watch::Sender<Arc<State>>>,
        health: Health,
    }

    async fn running() -> Running {
        let listener = listen("127.0.0.1:0".parse().unwrap(), "--listen").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = watch::channel(Arc::new(State::default()));
        let health = Health::new();
        tokio::spawn(serve(listener, receiver, health.clone()));
        Running { address, state: Some(sender), health }
    }

    impl Running {
        async fn get(&self, path: &str) -> (u16, String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
        }
    }

    #[tokio::test]
    async fn the_index_lists_every_route() {
        let agent = running().await;
        let (status, _, index) = agent.get("/api").await;
        assert_eq!(status, 200);
        for route in ["/metrics", "/livez", "/readyz", "/healthz", "/api/v1/state", "/api/v1/history"] {
            assert!(index.contains(route), "{index}");
            assert_ne!(agent.get(route).await.0, 404, "{route}");
        }
        assert_eq!(agent.get("/nothing").await.0, 404);
    }

    #[tokio::test]
    async fn readiness_says_what_is_missing_and_why() {
        let agent = running().await;
        for part in Part::ALL {
            agent.health.works(part);
        }
        agent.health.missing(Part::Uprobes, &"no BTF: use a kernel with CONFIG_DEBUG_INFO_BTF");
        assert_eq!(agent.get("/readyz").await.0, 200);
        agent.health.missing(Part::Devices, &"no NVML");
        for path in ["/readyz", "/healthz"] {
            let (status, _, body) = agent.get(path).await;
            let readiness: Readiness = serde_json::from_str(&body).unwrap();
            assert_eq!((status, readiness.ready), (503, false));
            assert_eq!(readiness.missing, agent.health.readiness().missing);
            assert!(body.contains("no NVML") && body.contains("CONFIG_DEBUG_INFO_BTF"), "{body}");
        }
    }

    #[tokio::test]
    async fn the_agent_is_alive_while_its_conductor_is() {
        let mut agent = running().await;
        assert_eq!(agent.get("/livez").await.0, 200);
        agent.state = None;
        assert_eq!(agent.get("/livez").await.0, 503);
    }

    #[tokio::test]
    async fn a_conductor_that_hangs_is_not_alive() {
        let (publish, state) = watch::channel(Arc::new(State::default()));
        let began = Instant::now().checked_sub(2 * SILENCE).unwrap();
        let pages = Pages::new(state, Health::new(), began);
        let (status, why) = livez(Shared(pages.clone())).await;
        assert!(status == StatusCode::SERVICE_UNAVAILABLE && why.contains("for 60 s"), "{why}");
        let up_seconds = began.elapsed().as_secs_f64();
        publish.send_replace(Arc::new(State { up_seconds, ..State::default() }));
        assert_eq!(livez(Shared(pages)).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn state_and_metrics_are_of_the_latest_publication() {
        let agent = running().await;
        let state = State { release: "9.8.7".to_owned(), ..State::default() };
        agent.state.as_ref().unwrap().send_replace(Arc::new(state.clone()));
        let (status, head, body) = agent.get("/api/v1/state").await;
        assert_eq!((status, serde_json::from_str::<State>(&body).unwrap()), (200, state));
        assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
        let (_, head, body) = agent.get("/metrics").await;
        assert!(body.contains("release=\"9.8.7\""), "{body}");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    }

    /// Connects to the events and reads until `text` was said.
    async fn listener(agent: &Running, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
        heard(&mut stream, text).await;
        stream
    }

    async fn heard(stream: &mut TcpStream, text: &str) {
        let mut all = String::new();
        let reading = async {
            while !all.contains(text) {
                let mut part = [0; 4096];
                let bytes = stream.read(&mut part).await.unwrap();
                assert_ne!(bytes, 0, "the events ended after {all}");
                all.push_str(&String::from_utf8_lossy(&part[..bytes]));
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reading).await.expect(text);
    }

    #[tokio::test]
    async fn a_listener_hears_what_is_and_then_what_changes() {
        let agent = running().await;
        let mut stream = listener(&agent, "event: state\n").await;
        let state = State { release: "9.8.7".to_owned(), ..State::default() };
        agent.state.as_ref().unwrap().send_replace(Arc::new(state));
        heard(&mut stream, "\"release\":\"9.8.7\"").await;
        let mut stream = listener(&agent, "event: history\n").await;
        drop(agent.state);
        // The last chunk: the events end with the conductor.
        heard(&mut stream, "0\r\n\r\n").await;
    }

    #[tokio::test]
    async fn one_listener_too_many_is_told_so_and_a_seat_that_is_left_is_free_again() {
        let agent = running().await;
        let mut listeners = Vec::new();
        for _ in 0..events::LISTENERS {
            listeners.push(listener(&agent, "200 OK").await);
        }
        let (status, _, why) = agent.get("/api/v1/events").await;
        assert!(status == 503 && why.contains("64 listeners"), "{status} {why}");
        listeners.pop();
        // The server notices with the next event that it cannot deliver.
        let publishing = async {
            loop {
                agent.state.as_ref().unwrap().send_replace(Arc::default());
                let mut stream = TcpStream::connect(agent.address).await.unwrap();
                stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
                let mut head = [0; 12];
                stream.read_exact(&mut head).await.unwrap();
                if head.ends_with(b"200") {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), publishing).await.expect("a seat becomes free");
    }

    #[tokio::test]
    async fn the_history_shows_what_was_published() {
        let agent = running().await;
        let state = State { up_seconds: 7.5, ..State::default() };
        agent.state.as_ref().unwrap().send_replace(Arc::new(state));
        let kept = async { while !agent.get("/api/v1/history").await.2.contains("\"up_seconds\":7.5") {} };
        tokio::time::timeout(Duration::from_secs(10), kept).await.expect("the history holds it");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_the_remedy() {
        let agent = running().await;
        let error = listen(agent.address, "--listen").await.unwrap_err().to_string();
        assert!(error.contains(&agent.address.to_string()) && error.contains("--listen"), "{error}");
    }
}
