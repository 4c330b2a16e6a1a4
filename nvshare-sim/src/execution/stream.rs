//! Streams: queues of work, each with a thread of its own that sleeps when there is none, and what each waits for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::{CUresult, CUstream};
use nvshare_sim_card::now;

use super::streams::{self, Siblings, Streams};
use super::work::{Job, Work};
use crate::call::{Call, Outcome};
use crate::completion::{Completion, Place};
use crate::context::green::Green;
use crate::context::{Context, Queue};
use crate::failure;
use crate::faults::Effect;
use crate::handles::Registry;
use crate::jam::Jam;
use crate::memory::pool;

/// Streams that the application made.
pub(crate) static STREAMS: Registry<Stream> = Registry::new();

/// So much work of a stream can be submitted and not over; whoever submits more is blocked until some of it is. Records of
/// events and waits for them do not count: 20,000 of them fit (seen on an H200, as 1,021 behind a kernel that waits).
const ROOM: usize = 1022;

/// What kind of stream it is, which decides what it waits for without being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The legacy default stream: waits for all blocking streams of its context, and they for it.
    Legacy,
    /// A thread's own default stream: blocking.
    PerThread,
    /// Made by the application.
    Blocking,
    /// Made by the application with `CU_STREAM_NON_BLOCKING`.
    NonBlocking,
}

/// A stream.
pub(crate) struct Stream {
    /// Where it belongs.
    pub(crate) context: Arc<Context>,
    /// A number for `cuStreamGetId` and messages.
    pub(crate) id: u64,
    /// What it waits for without being told.
    pub(crate) kind: Kind,
    /// As it was made.
    pub(crate) flags: u32,
    /// As it was made; has no effect.
    pub(crate) priority: i32,
    /// The green context that it was made in.
    pub(crate) green: Option<Arc<Green>>,
    /// The streams of its context, itself among them.
    pub(super) siblings: Arc<Siblings>,
    /// Threads that are blocked in submissions to it.
    jam: Jam,
    /// When its last work ended, by the card's clocks.
    ended: AtomicU64,
    queue: Mutex<Line>,
    wake: Condvar,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    /// Work that takes room: submitted and not over.
    load: usize,
    /// Somebody, the worker or a synchronous call, executes a job of this stream.
    busy: bool,
    /// The worker thread was started.
    worker: bool,
    /// No more work will come.
    closed: bool,
    /// The end of what was submitted last.
    last: Option<Arc<Completion>>,
}

impl Stream {
    /// Makes a stream without a worker; it gets one with its first work.
    pub(crate) fn new(context: &Arc<Context>, kind: Kind, flags: u32, priority: i32) -> Arc<Stream> {
        Stream::made(context, None, kind, flags, priority)
    }

    /// Makes a stream of a green context.
    pub(crate) fn of_green(green: &Arc<Green>, flags: u32, priority: i32) -> Arc<Stream> {
        Stream::made(&green.primary, Some(Arc::clone(green)), Kind::NonBlocking, flags, priority)
    }

    fn made(
        context: &Arc<Context>,
        green: Option<Arc<Green>>,
        kind: Kind,
        flags: u32,
        priority: i32,
    ) -> Arc<Stream> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Arc::new(Stream {
            context: Arc::clone(context),
            id: NUMBERS.fetch_add(1, Ordering::Relaxed),
            kind,
            flags,
            priority,
            green,
            siblings: Siblings::of(context),
            jam: Jam::default(),
            ended: AtomicU64::new(0),
            queue: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    /// Whether it waits for the legacy stream, and that for it.
    pub(crate) fn is_blocking(&self) -> bool {
        matches!(self.kind, Kind::PerThread | Kind::Blocking)
    }

    /// The stream as its context sees it.
    pub(super) fn as_queue(self: &Arc<Stream>) -> Weak<dyn Queue> {
        Arc::downgrade(&(Arc::clone(self) as Arc<dyn Queue>))
    }

    /// An error if it cannot be used.
    pub(crate) fn usable(&self) -> Outcome {
        self.green.as_ref().map_or(Ok(()), |green| green.usable())?;
        self.context.usable()
    }

    /// What has to end before an operation on this stream could begin.
    pub(crate) fn pending(self: &Arc<Stream>) -> Vec<Arc<Completion>> {
        self.jam.pass();
        let streams = self.siblings.lock();
        let mut pending = self.implicit(&streams);
        pending.extend(self.last());
        pending
    }

    /// When its last work ended, by the card's clocks.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Its last work ended then.
    pub(crate) fn set_ended(&self, at: u64) {
        self.ended.store(at, Ordering::Relaxed);
    }

    /// Waits for everything that was submitted to it.
    pub(crate) fn synchronize(self: &Arc<Stream>) -> Outcome {
        let mut reached = vec![Place::last(self.id)];
        for completion in self.pending() {
            completion.wait();
            reached.push(completion.place);
        }
        pool::reached(self.context.device, &reached);
        failure::check()
    }

    /// Appends `work`, to begin when `after` is over too. With `here`, as the caller is going to wait anyway, or where the work is
    /// brief, the calling thread executes it itself if nothing is before it.
    pub(crate) fn enqueue(
        self: &Arc<Stream>,
        (work, effect): (Work, Option<Effect>),
        after: &[Arc<Completion>],
        here: bool,
    ) -> Arc<Completion> {
        self.take_room(work.takes_room());
        let streams = self.siblings.lock();
        let mut waits = self.implicit(&streams);
        let done = Arc::new(Completion::of_next(self.id));
        pool::follow(done.place, waits.iter().chain(after));
        waits.extend(after.iter().filter(|completion| completion.finished().is_none()).cloned());
        let mut queue = self.lock();
        let free = queue.jobs.is_empty() && !queue.busy;
        if free && waits.is_empty() && work.is_instant() {
            done.finish(now());
            queue.last = Some(Arc::clone(&done));
            return done;
        }
        let here = here || waits.is_empty() && work.is_brief();
        let job = Job::new(self, (work, effect), waits, Arc::clone(&done));
        queue.last = Some(Arc::clone(&done));
        if here && free {
            queue.busy = true;
            drop(queue);
            drop(streams);
            self.release(job.run());
            return done;
        }
        queue.jobs.push_back(job);
        let start = !std::mem::replace(&mut queue.worker, true);
        drop(queue);
        drop(streams);
        if start {
            self.start();
        } else {
            self.wake.notify_all();
        }
        done
    }

    /// No more work will come; what is queued is still done. A capture that it takes part in comes to nothing.
    pub(crate) fn close(&self) {
        super::capture::forget(self);
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// The work that this stream's next operation waits for without being told.
    fn implicit(self: &Arc<Stream>, streams: &Streams) -> Vec<Arc<Completion>> {
        match self.kind {
            Kind::Legacy => streams
                .all()
                .iter()
                .filter(|stream| stream.is_blocking())
                .filter_map(|stream| stream.last())
                .collect(),
            Kind::PerThread | Kind::Blocking => {
                streams.legacy.iter().filter_map(|legacy| legacy.last()).collect()
            }
            Kind::NonBlocking => Vec::new(),
        }
    }

    /// Waits until there is room for one more piece of work, and takes it.
    fn take_room(&self, needed: bool) {
        if !needed {
            return self.jam.pass();
        }
        let mut queue = self.lock();
        // Host functions run in stream threads and must not call the driver; one that does must not wait for itself.
        if queue.load >= ROOM && !queue.closed && !crate::threads::is_ours() {
            self.jam.enter();
            self.context.jam.enter();
            while queue.load >= ROOM && !queue.closed {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            self.jam.leave();
            self.context.jam.leave();
        }
        queue.load += 1;
    }

    fn start(self: &Arc<Stream>) {
        let stream = Arc::clone(self);
        let started = crate::threads::start(c"cuda-stream", move || stream.serve());
        if let Err(error) = started {
            // As good as a device that fell off the bus: nothing can be executed any more.
            eprintln!("nvshare-sim: cannot start the thread of stream {}: {error}", self.id);
            failure::set(CUresult::CUDA_ERROR_LAUNCH_FAILED);
            let jobs = std::mem::take(&mut self.lock().jobs);
            for job in jobs {
                self.release(job.run());
            }
        }
    }

    fn serve(&self) {
        loop {
            let job = {
                let mut queue = self.lock();
                loop {
                    if !queue.busy
                        && let Some(job) = queue.jobs.pop_front()
                    {
                        queue.busy = true;
                        break job;
                    }
                    if queue.closed && queue.jobs.is_empty() {
                        return;
                    }
                    queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            };
            self.release(job.run());
        }
    }

    /// A piece of work is over; whether it had taken room.
    fn release(&self, had_room: bool) {
        let mut queue = self.lock();
        queue.busy = false;
        let waiting = queue.worker && !queue.jobs.is_empty();
        let room = had_room && queue.load >= ROOM;
        queue.load -= usize::from(had_room);
        drop(queue);
        if waiting || room {
            self.wake.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue for Stream {
    fn last(&self) -> Option<Arc<Completion>> {
        let line = self.lock();
        line.last.clone().filter(|last| last.finished().is_none())
    }
}

/// `CU_STREAM_LEGACY`.
const LEGACY: usize = 1;
/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

impl Call {
    /// The stream that `handle` names: null is the default stream of the kind that the called symbol stands for.
    pub(crate) fn stream(&self, handle: CUstream) -> Outcome<Arc<Stream>> {
        let context = match handle as usize {
            0 | LEGACY | PER_THREAD => self.context()?,
            _ => {
                let stream = STREAMS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
                stream.usable()?;
                return Ok(stream);
            }
        };
        if handle as usize == PER_THREAD || (handle.is_null() && self.per_thread) {
            Ok(streams::of_thread(&context))
        } else {
            streams::legacy(&context)
        }
    }
}
