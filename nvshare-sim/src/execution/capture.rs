//! Stream capture: which streams are being captured into which graph, and what is forbidden meanwhile. The rules are those
//! of the driver API's description of `cuThreadExchangeStreamCaptureMode` and of the programming guide.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use cudarc::driver::sys::CUresult;

pub(crate) use super::capture_mode::{Mode, exchange_mode};
use super::graph::{Graph, Node};
use super::stream::{Kind, Stream};
use super::work::Work;
use crate::call::Outcome;
use crate::context::Context;

/// A place in a capture, as an event remembers it.
#[derive(Clone)]
pub(crate) struct Mark {
    capture: u64,
    nodes: Vec<Arc<Node>>,
}

/// What `cuStreamGetCaptureInfo` tells.
pub(crate) enum Status {
    /// Not captured.
    None,
    /// Being captured.
    Active {
        /// The capture's number.
        id: u64,
        /// Where the nodes go.
        graph: Arc<Graph>,
        /// What the next node comes after.
        tails: Vec<Arc<Node>>,
    },
    /// Being captured in vain: something forbidden was done.
    Invalidated {
        /// The capture's number.
        id: u64,
    },
}

struct Capture {
    mode: Mode,
    thread: ThreadId,
    origin: usize,
    graph: Arc<Graph>,
    invalid: bool,
}

/// A stream that is being captured.
struct Joined {
    capture: u64,
    tails: Vec<Arc<Node>>,
    context: u64,
    blocking: bool,
}

#[derive(Default)]
struct State {
    captures: HashMap<u64, Capture>,
    streams: HashMap<usize, Joined>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
/// How many captures there are: nothing needs to be looked up while there are none.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

fn state() -> Option<MutexGuard<'static, State>> {
    if ACTIVE.load(Ordering::Acquire) == 0 {
        return None;
    }
    Some(STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn key(stream: &Stream) -> usize {
    std::ptr::from_ref(stream).addr()
}

impl State {
    fn capture_of(&mut self, stream: &Arc<Stream>) -> Option<&mut Capture> {
        let joined = self.streams.get(&key(stream))?;
        self.captures.get_mut(&joined.capture)
    }

    fn invalidate(&mut self, mut hit: impl FnMut(u64, &Capture) -> bool) -> bool {
        let mut any = false;
        for (id, capture) in &mut self.captures {
            if hit(*id, capture) {
                capture.invalid = true;
                any = true;
            }
        }
        any
    }

    /// Using the legacy stream would order it after work that is only being captured.
    fn forbid_legacy(&mut self, context: &Context) -> Outcome {
        let hit: HashSet<u64> = self
            .streams
            .values()
            .filter(|joined| joined.blocking && joined.context == context.id)
            .map(|joined| joined.capture)
            .collect();
        if self.invalidate(|id, _| hit.contains(&id)) {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        }
        Ok(())
    }

    fn end(&mut self, id: u64) {
        self.captures.remove(&id);
        self.streams.retain(|_, joined| joined.capture != id);
        ACTIVE.store(self.captures.len(), Ordering::Release);
    }
}

/// Begins to capture `stream` into `graph`, after `tails` of it.
pub(crate) fn begin(stream: &Arc<Stream>, mode: Mode, graph: Arc<Graph>, tails: Vec<Arc<Node>>) -> Outcome {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    if stream.kind == Kind::Legacy {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if state.streams.contains_key(&key(stream)) {
        return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE);
    }
    let id = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::current().id();
    state.captures.insert(id, Capture { mode, thread, origin: key(stream), graph, invalid: false });
    state.streams.insert(key(stream), joined(stream, id, tails));
    ACTIVE.store(state.captures.len(), Ordering::Release);
    Ok(())
}

fn joined(stream: &Arc<Stream>, capture: u64, tails: Vec<Arc<Node>>) -> Joined {
    Joined { capture, tails, context: stream.context.id, blocking: stream.is_blocking() }
}

/// Ends the capture that began on `stream`.
pub(crate) fn end(stream: &Arc<Stream>) -> Outcome<Arc<Graph>> {
    let mut state = state().ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
    let joined = state.streams.get(&key(stream)).ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
    let id = joined.capture;
    let tails = joined.tails.clone();
    let capture = &state.captures[&id];
    if capture.origin != key(stream) {
        state.invalidate(|other, _| other == id);
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    }
    if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }
    let (graph, invalid) = (Arc::clone(&capture.graph), capture.invalid);
    // Everything that other streams did must come before what the first one did last.
    let before = ancestors(&tails);
    let others =
        state.streams.iter().filter(|(other, joined)| joined.capture == id && **other != key(stream));
    let unjoined =
        others.flat_map(|(_, joined)| &joined.tails).any(|node| !before.contains(&Arc::as_ptr(node)));
    state.end(id);
    if invalid {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    if unjoined {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    }
    Ok(graph)
}

fn ancestors(nodes: &[Arc<Node>]) -> HashSet<*const Node> {
    let mut seen = HashSet::new();
    let mut left = nodes.to_vec();
    while let Some(node) = left.pop() {
        if seen.insert(Arc::as_ptr(&node)) {
            left.extend(node.after());
        }
    }
    seen
}

/// Whether `stream` is being captured.
pub(crate) fn is_capturing(stream: &Arc<Stream>) -> bool {
    state().is_some_and(|state| state.streams.contains_key(&key(stream)))
}

/// What is to be told about `stream`; the legacy stream must not even be asked about while a blocking one is captured.
pub(crate) fn status(stream: &Arc<Stream>) -> Outcome<Status> {
    let Some(mut state) = state() else { return Ok(Status::None) };
    if stream.kind == Kind::Legacy {
        let blocking = |joined: &Joined| joined.blocking && joined.context == stream.context.id;
        if state.streams.values().any(blocking) {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        }
        return Ok(Status::None);
    }
    let Some(joined) = state.streams.get(&key(stream)) else { return Ok(Status::None) };
    let (id, tails) = (joined.capture, joined.tails.clone());
    let capture = state.capture_of(stream).ok_or(CUresult::CUDA_ERROR_UNKNOWN)?;
    Ok(if capture.invalid {
        Status::Invalidated { id }
    } else {
        Status::Active { id, graph: Arc::clone(&capture.graph), tails }
    })
}

/// The graph that `stream` is being captured into.
pub(crate) fn graph_of(stream: &Arc<Stream>) -> Outcome<Option<Arc<Graph>>> {
    let Some(mut state) = state() else { return Ok(None) };
    match state.capture_of(stream) {
        None => Ok(None),
        Some(capture) if capture.invalid => Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),
        Some(capture) => Ok(Some(Arc::clone(&capture.graph))),
    }
}

/// Takes `work` into a graph if `stream` is being captured; `false` if it is to be executed.
pub(crate) fn take(stream: &Arc<Stream>, work: &Work) -> Outcome<bool> {
    let Some(mut state) = state() else { return Ok(false) };
    if stream.kind == Kind::Legacy {
        state.forbid_legacy(&stream.context)?;
    }
    let Some(capture) = state.capture_of(stream) else { return Ok(false) };
    if capture.invalid {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    let graph = Arc::clone(&capture.graph);
    let Some(joined) = state.streams.get_mut(&key(stream)) else { return Ok(false) };
    joined.tails = vec![graph.add(work.clone(), std::mem::take(&mut joined.tails))];
    Ok(true)
}

/// Waiting for `stream`, or asking how far it is, is not possible while it is captured.
pub(crate) fn forbid_waiting(stream: &Arc<Stream>) -> Outcome {
    if let Some(mut state) = state() {
        if let Some(capture) = state.capture_of(stream) {
            capture.invalid = true;
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        if stream.kind == Kind::Legacy {
            state.forbid_legacy(&stream.context)?;
        }
    }
    unsafe_call()
}

/// Waiting for `context` is not possible while one of its streams is captured.
pub(crate) fn forbid_waiting_for(context: &Context) -> Outcome {
    if let Some(mut state) = state() {
        let hit: HashSet<u64> = state
            .streams
            .values()
            .filter(|joined| joined.context == context.id)
            .map(|joined| joined.capture)
            .collect();
        if state.invalidate(|id, _| hit.contains(&id)) {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    unsafe_call()
}

/// A potentially unsafe call (an allocation, a wait): it fails, and the captures it endangers with it, unless the
/// calling thread's mode allows it.
pub(crate) fn unsafe_call() -> Outcome {
    let Some(mut state) = state() else { return Ok(()) };
    let (mode, thread) = (super::capture_mode::current(), std::thread::current().id());
    let endangered = |_: u64, capture: &Capture| match mode {
        Mode::Relaxed => false,
        Mode::ThreadLocal => capture.thread == thread && capture.mode != Mode::Relaxed,
        Mode::Global => {
            capture.mode == Mode::Global || (capture.thread == thread && capture.mode == Mode::ThreadLocal)
        }
    };
    if state.invalidate(endangered) {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    Ok(())
}

/// Where an event that is recorded on `stream` now lies; `None` if it is not being captured.
pub(crate) fn mark(stream: &Arc<Stream>) -> Outcome<Option<Mark>> {
    let Some(mut state) = state() else { return Ok(None) };
    if stream.kind == Kind::Legacy {
        state.forbid_legacy(&stream.context)?;
    }
    let Some(joined) = state.streams.get(&key(stream)) else { return Ok(None) };
    let mark = Mark { capture: joined.capture, nodes: joined.tails.clone() };
    if state.captures[&mark.capture].invalid {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    Ok(Some(mark))
}

/// `stream` waits for a place in a capture, and so is captured too.
pub(crate) fn wait_for(stream: &Arc<Stream>, mark: &Mark) -> Outcome {
    let mut state = state().ok_or(CUresult::CUDA_ERROR_CAPTURED_EVENT)?;
    let capture = state.captures.get(&mark.capture).ok_or(CUresult::CUDA_ERROR_CAPTURED_EVENT)?;
    if capture.invalid {
        return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    if stream.kind == Kind::Legacy {
        return state
            .forbid_legacy(&stream.context)
            .and(Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED));
    }
    match state.streams.get_mut(&key(stream)) {
        None => {
            state.streams.insert(key(stream), joined(stream, mark.capture, mark.nodes.clone()));
            Ok(())
        }
        Some(joined) if joined.capture == mark.capture => {
            for node in &mark.nodes {
                if !joined.tails.iter().any(|tail| Arc::ptr_eq(tail, node)) {
                    joined.tails.push(Arc::clone(node));
                }
            }
            Ok(())
        }
        Some(joined) => {
            let (a, b) = (joined.capture, mark.capture);
            state.invalidate(|id, _| id == a || id == b);
            Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE)
        }
    }
}

/// What a stream that is being captured cannot do: it ends in `error`, and spoils the capture.
pub(crate) fn forbid(stream: &Arc<Stream>, error: CUresult) -> Outcome {
    if let Some(mut state) = state()
        && let Some(capture) = state.capture_of(stream)
    {
        if capture.invalid {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        capture.invalid = true;
        return Err(error);
    }
    Ok(())
}

/// An event that was recorded in a capture is asked or waited for by the host.
pub(crate) fn forbid_event(mark: &Mark) -> CUresult {
    if let Some(mut state) = state() {
        state.invalidate(|id, _| id == mark.capture);
    }
    CUresult::CUDA_ERROR_CAPTURED_EVENT
}

/// Changes what the stream's next node comes after.
pub(crate) fn set_tails(stream: &Arc<Stream>, nodes: Vec<Arc<Node>>, add: bool) -> Outcome {
    let mut state = state().ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
    let joined = state.streams.get_mut(&key(stream)).ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
    if !add {
        joined.tails.clear();
    }
    joined.tails.extend(nodes);
    Ok(())
}

/// The stream is destroyed: a capture it took part in comes to nothing.
pub(crate) fn forget(stream: &Stream) {
    if let Some(mut state) = state()
        && let Some(joined) = state.streams.remove(&key(stream))
    {
        let id = joined.capture;
        state.invalidate(|other, _| other == id);
        if state.captures[&id].origin == key(stream) {
            state.end(id);
        }
    }
}
