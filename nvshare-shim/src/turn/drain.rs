//! The drain: with the gate shut, wait until the calls in flight have returned and all work they submitted is finished.
//! No call is made that concerns a whole context (such calls fail while a stream is captured, and cannot be given up), and
//! nothing is recorded anywhere: a drain that is given up leaves no trace (S9).
//!
//! Whatever is known about the driver, a call into it may take longer than anybody wants to wait. So the questions are asked
//! by a thread that does nothing else, and who ordered the drain looks on: where an answer does not come the drain is given
//! up all the same. What is found out after that has no effect, and as long as that thread is not back, further drains are
//! given up at once: there is never more than one question that is not answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::drained::Drained;
use super::{dead, run_state};
use crate::cuda::CUresult;
use crate::driver::driver;
use crate::streams::{self, Left, Listener, Survey};
use crate::{gate, log, threads};

/// How often who ordered a drain looks whether it is stuck.
const LOOK: Duration = Duration::from_millis(10);

/// Why a drain was given up. The gate is still shut: whoever shut it opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stalled {
    /// Nothing was completed for the time given. What was waited for, for people.
    NoProgress(String),
    /// The device reported an error that no call of this process survives.
    Dead(CUresult),
}

/// What the two threads know of one drain.
#[derive(Debug, Default)]
struct Attempt {
    given_up: AtomicBool,
    /// Counts questions and answers: odd while one is not answered.
    steps: AtomicU64,
    /// The last question, for people.
    asking: Mutex<String>,
}

impl Attempt {
    fn asked(&self) -> MutexGuard<'_, String> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Attempt {
    fn asking(&self, name: &dyn Fn() -> String) -> bool {
        if self.given_up.load(Ordering::Acquire) {
            return false;
        }
        *self.asked() = name();
        self.steps.fetch_add(1, Ordering::AcqRel);
        true
    }

    fn answered(&self) {
        self.steps.fetch_add(1, Ordering::AcqRel);
    }
}

struct Job {
    attempt: Arc<Attempt>,
    stall: Duration,
    /// With how often default streams had been used before.
    answer: Sender<Result<(Drained, u64), Stalled>>,
}

/// The thread that asks: its inbox, and the drain that it is not back from.
struct Asker {
    inbox: Sender<Job>,
    stuck: Option<Arc<Attempt>>,
}

static ASKER: Mutex<Option<Asker>> = Mutex::new(None);

fn asker() -> MutexGuard<'static, Option<Asker>> {
    ASKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that asks; before the gate can be shut.
pub(crate) fn prepare() {
    let mut asker = asker();
    if asker.is_some() {
        return;
    }
    let (inbox, jobs) = channel::<Job>();
    let started = threads::engine_thread("drain", move || {
        // For the life of the thread: nothing it asks may break a capture of the application.
        let _relaxed = streams::Relaxed::new();
        for job in jobs {
            // Who gave up does not listen any more.
            let _ = job.answer.send(ask_until_finished(&job.attempt, job.stall));
        }
    });
    match started {
        Ok(_) => *asker = Some(Asker { inbox, stuck: None }),
        Err(error) => log::warning!("cannot start the thread that drains: {error}; memory stays where it is"),
    }
}

/// Waits until the application's work is finished. The gate must be shut ([`gate::shut`]) and the caller outside any
/// pass. Gives up when no call returned and no stream finished for `stall`.
pub fn drain(stall: Duration) -> Result<Drained, Stalled> {
    debug_assert!(gate::is_shut() || dead::is_dead(), "a drain with the gate open proves nothing");
    let attempt = Arc::new(Attempt::default());
    let (answer, answered) = channel();
    {
        let mut asker = asker();
        let Some(asker) = &mut *asker else {
            return Err(Stalled::NoProgress(
                "a thread to ask the driver, which could not be started".to_owned(),
            ));
        };
        if let Some(stuck) = &asker.stuck {
            if Arc::strong_count(stuck) > 1 {
                return Err(Stalled::NoProgress(stuck_at(stuck)));
            }
            asker.stuck = None;
        }
        let job = Job { attempt: Arc::clone(&attempt), stall, answer };
        if asker.inbox.send(job).is_err() {
            return Err(Stalled::NoProgress("a thread to ask the driver, which has ended".to_owned()));
        }
    }
    let (mut steps, mut quiet) = (0, Duration::ZERO);
    loop {
        match answered.recv_timeout(LOOK) {
            Ok(Ok((drained, uses))) => {
                streams::defaults_are_idle(uses);
                return Ok(drained);
            }
            Ok(Err(stalled)) => return Err(stalled),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Stalled::NoProgress("a thread to ask the driver, which has ended".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        // Counted in looks of this thread: a process that was stopped meanwhile has asked nothing either.
        let now = attempt.steps.load(Ordering::Acquire);
        quiet = if now == steps && now % 2 == 1 { quiet + LOOK } else { Duration::ZERO };
        steps = now;
        if quiet > stall {
            attempt.given_up.store(true, Ordering::Release);
            let what = stuck_at(&attempt);
            if let Some(asker) = &mut *asker() {
                asker.stuck = Some(attempt);
            }
            return Err(Stalled::NoProgress(what));
        }
    }
}

fn stuck_at(attempt: &Attempt) -> String {
    format!("the driver's answer about {}", attempt.asked())
}

fn ask_until_finished(attempt: &Attempt, stall: Duration) -> Result<(Drained, u64), Stalled> {
    let mut patience = Patience::new(stall);
    loop {
        wait_until_outside(&mut patience)?;
        let mut survey = Survey::new();
        let mut before = usize::MAX;
        loop {
            let left = survey.look(attempt).ok_or_else(|| Stalled::NoProgress(stuck_at(attempt)))?;
            if left.is_nothing() {
                return Ok((Drained::now(), survey.uses));
            }
            if let Some(unknown) = &left.unknown
                && unknown.error.is_final()
            {
                dead::on_device_error(unknown.error);
                return Err(Stalled::Dead(unknown.error));
            }
            if left.busy > 0 || left.unknown.is_some() {
                patience.step(left.busy < before, || waited_for(&left))?;
                before = left.busy;
                continue;
            }
            // A default stream may have work that cannot be asked about before the capture in a blocking stream ends. That
            // takes calls of the application, some of which would wait at the gate.
            let ajar = run_state::ajar();
            patience.step(false, || "a capture in a blocking stream to end".to_owned())?;
            drop(ajar);
            break;
        }
    }
}

fn waited_for(left: &Left) -> String {
    match &left.unknown {
        Some(unknown) => {
            format!("{}, where the driver answers {}", unknown.what, driver().error_name(unknown.error))
        }
        None => format!("{} streams with unfinished work", left.busy),
    }
}

fn wait_until_outside(patience: &mut Patience) -> Result<(), Stalled> {
    let mut before = usize::MAX;
    loop {
        let inside = gate::inside();
        if inside == 0 {
            return Ok(());
        }
        patience.step(inside < before, || format!("{inside} threads inside driver calls"))?;
        before = inside;
    }
}

/// Waits in growing steps, and ends when nothing happened for too long.
struct Patience {
    stall: Duration,
    last_progress: Instant,
    pause: Duration,
}

impl Patience {
    fn new(stall: Duration) -> Patience {
        Patience { stall, last_progress: Instant::now(), pause: Self::SHORTEST }
    }

    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_micros(500);

    fn step(&mut self, progress: bool, waiting_for: impl FnOnce() -> String) -> Result<(), Stalled> {
        if progress {
            self.last_progress = Instant::now();
            self.pause = Self::SHORTEST;
        } else if self.last_progress.elapsed() > self.stall {
            return Err(Stalled::NoProgress(waiting_for()));
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Self::LONGEST);
        Ok(())
    }
}
