//! Looking whether everything is finished, as a drain does. Streams are asked, nothing is recorded: a drain that is given up
//! leaves no operation of ours anywhere, and an event in the legacy stream would be worse: it orders all blocking streams
//! behind one another.
//!
//! The question about the default streams comes last, and only where they were used: the legacy stream answers for itself, for
//! all blocking streams and so for the threads' own default streams (seen on an H200, in 10 us, whatever is queued). Only
//! while nobody is inside the gate: a stream that a thread is stuck in submitting to does not answer before that goes on.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::capture::Pending;
use super::event::Event;
use super::table::{Context, Refusal, Stream, known};
use crate::cuda::sys::CUstream;
use crate::cuda::{CAPTURE_STATUS_NONE, CUresult, STREAM_LEGACY, STREAM_PER_THREAD};
use crate::driver::driver;
use crate::gate::{self, Pass};

/// How often default streams had been used when they were last known to be idle.
static IDLE_AFTER: AtomicU64 = AtomicU64::new(0);

/// The default streams were seen to be idle with nobody inside the gate, after so many uses.
pub(crate) fn defaults_are_idle(uses: u64) {
    IDLE_AFTER.fetch_max(uses, Ordering::AcqRel);
}

pub(super) fn defaults_used() -> bool {
    gate::default_uses() != IDLE_AFTER.load(Ordering::Acquire)
}

/// A capture is about to begin, by a thread that is inside the gate: if it is in a blocking stream the default streams can be
/// asked for the last time, and are not used before it ends. A drain that knows that they are idle waits for no capture.
pub(super) fn look_at_defaults() {
    if !defaults_used() {
        return;
    }
    let uses = gate::default_uses();
    if gate::inside() > 1 {
        return;
    }
    let contexts: Vec<_> = known().contexts.values().map(|(context, _)| Arc::clone(context)).collect();
    if contexts.into_iter().all(|context| Question::Defaults(context).ask() == Ok(Answer::Idle)) {
        defaults_are_idle(uses);
    }
}

/// Notes that the work which is submitted next inside `pass` goes into `stream`.
#[inline]
pub(crate) fn note_use(pass: &Pass, stream: CUstream) {
    if stream == STREAM_LEGACY || stream == STREAM_PER_THREAD {
        pass.uses_default();
    }
}

pub(super) fn capture_status(stream: CUstream) -> Result<u32, CUresult> {
    let mut status = CAPTURE_STATUS_NONE;
    // SAFETY: `status` is where the driver stores the answer; asking invalidates no capture.
    unsafe { driver().cuStreamIsCapturing(stream, &raw mut status) }.result()?;
    Ok(status)
}

/// Whether `stream`, which is not being captured, has work that is not finished.
pub(super) fn query(stream: CUstream) -> Result<bool, CUresult> {
    // SAFETY: the stream exists: it is the caller's, or its destruction waits for who asks.
    match unsafe { driver().cuStreamQuery(stream) } {
        CUresult::CUDA_ERROR_NOT_READY => Ok(true),
        idle => idle.result().map(|()| false),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Nothing is under way there that another question does not cover.
    Idle,
    Busy,
    /// A blocking stream is captured, so that the default streams cannot be asked.
    BehindCapture,
}

/// One thing to ask about.
#[derive(Clone, Debug)]
enum Question {
    Stream(Arc<Stream>),
    Pending(Pending),
    Defaults(Arc<Context>),
}

impl Question {
    fn ask(&self) -> Result<Answer, CUresult> {
        let answer = match self {
            Question::Stream(stream) => {
                if stream.is_gone() {
                    return Ok(Answer::Idle);
                }
                // Barred: what comes of it is seen next time.
                stream.asks.ask(|| {
                    stream.context.within(|| match capture_status(stream.handle())? {
                        CAPTURE_STATUS_NONE => query(stream.handle()).map(busy),
                        // What it held before is pending.
                        _ => Ok(Answer::Idle),
                    })
                })
            }
            Question::Pending(Pending::Event(event)) => return event.done().map(|done| busy(!done)),
            Question::Pending(Pending::Unseen(context, error)) => {
                return if context.is_gone() { Ok(Answer::Idle) } else { Err(*error) };
            }
            Question::Defaults(context) => context.defaults.ask(|| {
                context.within(|| {
                    let asked = match capture_status(STREAM_LEGACY) {
                        Ok(CAPTURE_STATUS_NONE) => query(STREAM_LEGACY).map(busy),
                        Ok(_) => Ok(Answer::BehindCapture),
                        Err(error) => Err(error),
                    };
                    match asked {
                        Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) => Ok(Answer::BehindCapture),
                        other => other,
                    }
                })
            }),
        };
        match answer.unwrap_or(Err(Refusal::Leaving)) {
            Ok(answer) => Ok(answer),
            Err(Refusal::Gone) => Ok(Answer::Idle),
            Err(Refusal::Leaving) => Ok(Answer::Busy),
            // A stream in the table is alive. That the driver does not answer for it is no sign that it has no work.
            Err(Refusal::Error(error)) => Err(error),
        }
    }

    fn name(&self) -> String {
        match self {
            Question::Stream(stream) => format!("stream {:#x}", stream.handle),
            Question::Pending(_) => "work in a stream that is captured or gone".to_owned(),
            Question::Defaults(context) => format!("the default streams of context {:#x}", context.handle),
        }
    }
}

const fn busy(busy: bool) -> Answer {
    if busy { Answer::Busy } else { Answer::Idle }
}

/// What is left after a look.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// How many streams have work.
    pub(crate) busy: usize,
    /// What the driver does not answer for.
    pub(crate) unknown: Option<Unknown>,
    /// The default streams may have work, and cannot be asked before a capture ends.
    pub(crate) behind_capture: bool,
}

/// Something that the driver answers about with an error.
#[derive(Debug)]
pub(crate) struct Unknown {
    /// What, for people.
    pub(crate) what: String,
    /// The answer.
    pub(crate) error: CUresult,
}

impl Left {
    /// Whether everything is finished.
    pub(crate) fn is_nothing(&self) -> bool {
        self.busy == 0 && self.unknown.is_none() && !self.behind_capture
    }
}

/// Everything that there is to ask, less what was seen to be finished. Right as long as nothing is submitted.
#[derive(Debug)]
pub(crate) struct Survey {
    streams: Vec<Question>,
    defaults: Vec<Question>,
    /// How often these had been used before.
    pub(crate) uses: u64,
    /// Of one context only.
    of: Option<Arc<Context>>,
}

/// What is told of each question: its name before it, and whether to ask at all; and that it was answered.
pub(crate) trait Listener {
    /// Whether to ask.
    fn asking(&self, name: &dyn Fn() -> String) -> bool;
    /// It was answered.
    fn answered(&self);
}

impl Survey {
    /// With nobody inside the gate, which is shut.
    pub(crate) fn new() -> Survey {
        Survey::over(None)
    }

    /// Only what uses the memory of that context: its streams, and those of its green contexts.
    pub(super) fn of(context: &Arc<Context>) -> Survey {
        Survey::over(Some(Arc::clone(context)))
    }

    fn over(of: Option<Arc<Context>>) -> Survey {
        let uses = gate::default_uses();
        let known = known();
        let within = |context: &Arc<Context>| of.as_ref().is_none_or(|of| Arc::ptr_eq(of, context));
        let streams =
            known.streams.values().filter(|stream| within(&stream.context) || within(&stream.events));
        let streams = streams.cloned().map(Question::Stream).collect();
        let contexts = known.contexts.values().map(|(context, _)| context).filter(|context| within(context));
        let defaults = contexts.cloned().map(Question::Defaults).collect();
        drop(known);
        Survey { streams, defaults, uses, of }
    }

    /// Asks all that is left; nothing where the listener ended it.
    pub(crate) fn look(&mut self, listener: &impl Listener) -> Option<Left> {
        let mut left = Left::default();
        ask_all(&mut self.streams, &mut left, listener)?;
        // After the streams: what became pending because a stream was destroyed or captured meanwhile is there by now.
        let mut pending = pending(self.of.as_ref());
        ask_all(&mut pending, &mut left, listener)?;
        if self.streams.is_empty() && self.uses != IDLE_AFTER.load(Ordering::Acquire) {
            ask_all(&mut self.defaults, &mut left, listener)?;
        }
        Some(left)
    }

    /// Events after what is in the streams with work, instead of questions about them, which more work would go on answering.
    pub(super) fn mark_streams(&mut self) -> Result<Vec<Event>, CUresult> {
        let mut events = Vec::new();
        for question in std::mem::take(&mut self.streams) {
            let Question::Stream(stream) = &question else { continue };
            if question.ask()? == Answer::Idle {
                continue;
            }
            let recorded =
                stream.asks.ask(|| match stream.context.within(|| capture_status(stream.handle()))? {
                    CAPTURE_STATUS_NONE => Event::record(&stream.events, stream.handle()).map(Some),
                    _ => Ok(None),
                });
            match recorded {
                Some(Ok(Some(event))) => events.push(event),
                Some(Err(Refusal::Error(error))) => return Err(error),
                // It is being taken away, or captured: what is in it is pending then.
                _ => self.streams.push(question),
            }
        }
        Ok(events)
    }
}

fn pending(of: Option<&Arc<Context>>) -> Vec<Question> {
    let known = known();
    let within = |pending: &&Pending| of.is_none_or(|of| Arc::ptr_eq(of, pending.context()));
    known.pending.iter().filter(within).cloned().map(Question::Pending).collect()
}

fn ask_all(questions: &mut Vec<Question>, left: &mut Left, listener: &impl Listener) -> Option<()> {
    for question in std::mem::take(questions) {
        if !listener.asking(&|| question.name()) {
            return None;
        }
        let answer = question.ask();
        listener.answered();
        match answer {
            Ok(Answer::Idle) => continue,
            Ok(Answer::Busy) => left.busy += 1,
            Ok(Answer::BehindCapture) => left.behind_capture = true,
            Err(error) => {
                left.unknown = Some(Unknown { what: question.name(), error });
            }
        }
        questions.push(question);
    }
    Some(())
}
