//! Work: everything that a stream executes. It is submitted here, either to a stream or, where that is being captured, to
//! a graph; while it is in flight it is known what memory it may touch.

mod callback;
mod fault;
mod fill;
mod transfer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::now;

pub(crate) use callback::{Callback, HostCall};
pub(crate) use fill::Fill;
pub(crate) use transfer::{Plane, Transfer, device_end};

use crate::call::Outcome;
use crate::completion::Completion;
use crate::execution::capture;
use crate::execution::executable::Executable;
use crate::execution::kernel::Launch;
use crate::execution::shared_event::{Awaited, Reach};
use crate::execution::stream::Stream;
use crate::failure;
use crate::faults::Effect;
use crate::flight::{self, Touch};
use crate::memory::graph::Hold;
use crate::memory::leaving::Leaving;
use crate::timeline::Timeline;

/// Something else that happens in stream order: allocations, prefetches.
pub(crate) struct Custom {
    /// For messages.
    pub(crate) name: &'static str,
    /// What memory it uses.
    pub(crate) touches: Vec<Touch>,
    /// Does it.
    pub(crate) run: Box<dyn Fn(&mut Timeline<'_>) -> Outcome + Send + Sync>,
}

/// One operation of a stream.
#[derive(Clone)]
pub(crate) enum Work {
    /// A kernel.
    Kernel(Arc<Launch>),
    /// A copy.
    Transfer(Transfer),
    /// A memset.
    Fill(Fill),
    /// A function of the application.
    Host(HostCall),
    /// The older kind of host function, which also gets the stream and its state.
    Callback(Callback),
    /// A graph.
    Graph(Arc<Executable>),
    /// What a node of a graph allocates is there from here on.
    Allocate(Arc<Hold>),
    /// It is there no more.
    Free(Arc<Hold>),
    /// A piece of a pool that was freed: from here on nothing that came before may use it.
    Leave(Arc<Leaving>),
    /// What other parts of the simulator do in stream order.
    Custom(Arc<Custom>),
    /// The record of an event that processes share.
    #[expect(dead_code, reason = "that it goes is what counts")]
    Reach(Arc<Reach>),
    /// A wait for one.
    Await(Awaited),
    /// Nothing: an event's record, a wait for one, an empty node.
    Nothing,
}

impl Work {
    /// For messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Work::Kernel(launch) => format!("kernel `{}`", launch.function.name),
            Work::Transfer(transfer) => transfer.describe(),
            Work::Fill(fill) => fill.describe(),
            Work::Host(_) | Work::Callback(_) => "a host function".into(),
            Work::Graph(graph) => {
                let nodes: Vec<_> = graph.works().iter().map(Work::describe).take(4).collect();
                format!("a graph ({}, ..)", nodes.join(", "))
            }
            Work::Allocate(_) => "an allocation".into(),
            Work::Free(_) | Work::Leave(_) => "a free".into(),
            Work::Custom(custom) => custom.name.into(),
            Work::Reach(_) => "an event's record".into(),
            Work::Await(_) => "a wait for an event".into(),
            Work::Nothing => "nothing".into(),
        }
    }

    /// The memory it may touch.
    pub(crate) fn touches(&self) -> Vec<Touch> {
        match self {
            Work::Kernel(launch) => launch.touches(),
            Work::Transfer(transfer) => transfer.touches(),
            Work::Fill(fill) => vec![fill.touch()],
            Work::Graph(graph) => graph.works().iter().flat_map(Work::touches).collect(),
            Work::Custom(custom) => custom.touches.clone(),
            Work::Host(_)
            | Work::Callback(_)
            | Work::Allocate(_)
            | Work::Free(_)
            | Work::Leave(_)
            | Work::Reach(_)
            | Work::Await(_)
            | Work::Nothing => Vec::new(),
        }
    }

    /// What a node does instead of `before`, in the context that it had if it names none.
    pub(crate) fn in_place_of(self, before: &Work) -> Work {
        match (self, before) {
            (Work::Fill(new), Work::Fill(old)) if new.context == 0 => {
                Work::Fill(Fill { context: old.context, ..new })
            }
            (new, _) => new,
        }
    }

    /// An error for what cannot be part of an executable graph.
    pub(crate) fn check(&self) -> Outcome {
        match self {
            Work::Fill(fill) if fill.is_out_of_reach() => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
            Work::Graph(graph) => graph.works().iter().try_for_each(Work::check),
            _ => Ok(()),
        }
    }

    /// Whether it takes no time at all.
    pub(crate) fn is_instant(&self) -> bool {
        matches!(self, Work::Nothing | Work::Reach(_))
    }

    /// Whether it is as good as instant, but something is done.
    pub(crate) fn is_brief(&self) -> bool {
        matches!(self, Work::Leave(_))
    }

    /// Whether it takes room in its stream's queue.
    pub(crate) fn takes_room(&self) -> bool {
        !matches!(self, Work::Nothing | Work::Reach(_) | Work::Await(_))
    }

    /// Does it, in `timeline`.
    pub(crate) fn execute(&self, timeline: &mut Timeline<'_>) -> Outcome {
        match self {
            Work::Kernel(launch) => launch.execute(timeline),
            Work::Transfer(transfer) => transfer.execute(timeline),
            Work::Fill(fill) => fill.execute(timeline),
            Work::Host(call) => {
                timeline.sleep();
                call.run();
                timeline.at = timeline.at.max(now());
                Ok(())
            }
            Work::Callback(call) => {
                timeline.sleep();
                call.run();
                timeline.at = timeline.at.max(now());
                Ok(())
            }
            Work::Graph(graph) => graph.works().iter().try_for_each(|work| {
                timeline.check()?;
                work.execute(timeline)
            }),
            Work::Allocate(hold) => {
                timeline.sleep();
                hold.set_valid(true);
                Ok(())
            }
            Work::Free(hold) => {
                timeline.sleep();
                hold.set_valid(false);
                Ok(())
            }
            Work::Leave(leaving) => {
                timeline.sleep();
                leaving.turn();
                Ok(())
            }
            Work::Custom(custom) => (custom.run)(timeline),
            Work::Await(awaited) => awaited.wait_in(timeline),
            Work::Reach(_) | Work::Nothing => Ok(()),
        }
    }
}

/// A piece of work in a stream's queue.
pub(crate) struct Job {
    work: Work,
    effect: Option<Effect>,
    stream: Arc<Stream>,
    waits: Vec<Arc<Completion>>,
    done: Arc<Completion>,
    ready: u64,
    flight: flight::Ticket,
}

impl Job {
    /// Work that was submitted now; it counts as in flight until it has run.
    pub(crate) fn new(
        stream: &Arc<Stream>,
        (work, effect): (Work, Option<Effect>),
        waits: Vec<Arc<Completion>>,
        done: Arc<Completion>,
    ) -> Job {
        let flight = {
            let work = work.clone();
            flight::enter(work.touches(), stream.id, move || work.describe())
        };
        Job { work, effect, stream: Arc::clone(stream), waits, done, ready: now(), flight }
    }

    /// Waits for what comes before it, executes it, and says that it is over; whether it had taken room.
    pub(crate) fn run(self) -> bool {
        let context = &*self.stream.context;
        let before = self.waits.iter().map(|wait| wait.wait()).max().unwrap_or(0);
        let at = self.ready.max(before).max(self.stream.ended());
        let mut timeline = Timeline { context, at };
        // Whatever happens, the work is over in the end: others wait for it.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            timeline.check()?;
            fault::strike(self.effect, &mut timeline)?;
            self.work.execute(&mut timeline)
        }));
        let outcome = outcome.unwrap_or(Err(CUresult::CUDA_ERROR_LAUNCH_FAILED));
        match outcome {
            Ok(()) => timeline.sleep(),
            Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED) => {}
            Err(error) => failure::set(error),
        }
        self.stream.set_ended(timeline.at);
        flight::leave(self.flight);
        self.done.finish(timeline.at);
        self.work.takes_room()
    }
}

/// What became of work that was submitted.
pub(crate) enum Submitted {
    /// It runs, or will; this is its end.
    Running(Arc<Completion>),
    /// The stream is being captured: it is a node of a graph now and does not run.
    Captured,
}

/// Submits `work` to `stream`; the caller does not wait for it.
pub(crate) fn submit(stream: &Arc<Stream>, work: Work) -> Outcome<Submitted> {
    submit_after(stream, work, &[])
}

/// As [`submit`], not to begin before all of `after` is over.
pub(crate) fn submit_after(
    stream: &Arc<Stream>,
    work: Work,
    after: &[Arc<Completion>],
) -> Outcome<Submitted> {
    stream.usable()?;
    if capture::take(stream, &work)? {
        return Ok(Submitted::Captured);
    }
    let effect = fault::at_submission(&work)?;
    Ok(Submitted::Running(stream.enqueue((work, effect), after, false)))
}

/// Submits `work` to `stream` and waits for its end. Not allowed where the stream is being captured.
pub(crate) fn submit_and_wait(stream: &Arc<Stream>, work: Work) -> Outcome {
    stream.usable()?;
    capture::forbid_waiting(stream)?;
    let effect = fault::at_submission(&work)?;
    stream.enqueue((work, effect), &[], true).wait();
    failure::check()
}
