//! What work is known to be finished. The application's own synchronisations tell it for nothing. Where a stream needs what another
//! one freed, a thread of ours asks about that one ([`order`](mod@crate::streams::order)), and who needs it waits for the answer a moment at most.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Entry, Pools, UNSETTLED, pools, release};
use crate::cuda::sys::{CUcontext, CUstream};
use crate::memory::pool::Lane;
use crate::streams::order::{self, Work};
use crate::streams::{self, Mark};
use crate::{life, log, threads};

/// How long after a synchronisation what is due is given back.
const LATER: Duration = Duration::from_millis(100);

/// What a synchronisation is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    /// A stream (already resolved: never null).
    Stream(CUstream),
    /// A context; the current one if none is named.
    Context(Option<CUcontext>),
    /// An event, wherever it was recorded.
    Event,
}

/// Before a synchronisation: what it covers, if it matters.
#[inline]
pub(crate) fn before() -> Option<u64> {
    UNSETTLED.load(Ordering::Acquire).then(|| pools().frees)
}

/// It has returned: what was freed there before is anybody's, and what is above the thresholds is due.
#[cold]
pub(crate) fn synchronised(after: After, frees: u64) {
    let is_over: Box<dyn Fn(&Lane) -> bool> = match after {
        After::Stream(stream) => {
            let Some(lane) = order::lane(stream) else { return };
            Box::new(move |other| *other == lane)
        }
        After::Context(context) => {
            let Some(context) = order::context_number(context) else { return };
            Box::new(move |other| other.context == context)
        }
        After::Event => Box::new(|_| false),
    };
    let (mut due, mut over) = (false, BTreeSet::new());
    {
        let mut pools = pools();
        let pools = &mut *pools;
        for entry in pools.entries.values_mut() {
            let lanes: Vec<Lane> = entry.pool.lanes().into_iter().filter(|lane| is_over(lane)).collect();
            for lane in &lanes {
                entry.pool.finished(*lane, frees);
            }
            over.extend(lanes);
            entry.is_due();
            due |= entry.due.is_some();
        }
        for lane in over {
            pools.unmark(lane, frees);
        }
        is_settled(pools);
    }
    if matches!(after, After::Event) {
        asked().all = true;
        wake();
    } else if due {
        wake();
    }
}

/// A context is gone, and all work of it: `number` is what lanes had for it.
pub(crate) fn context_over(number: u64) {
    let mut pools = pools();
    let frees = pools.frees;
    for entry in pools.entries.values_mut() {
        for lane in entry.pool.lanes().into_iter().filter(|lane| lane.context == number) {
            entry.pool.finished(lane, frees);
        }
    }
    pools.marks.retain(|lane, _| lane.context != number);
}

/// A stream is about to be destroyed, by the calling thread: what was freed in it is finished when its work is.
pub fn stream_leaves(stream: CUstream) {
    if !UNSETTLED.load(Ordering::Acquire) {
        return;
    }
    let Some(lane) = order::lane(stream) else { return };
    let frees = {
        let pools = pools();
        if !pools.entries.values().any(|entry| entry.pool.lanes().contains(&lane)) {
            return;
        }
        pools.frees
    };
    if let Ok(Some(mark)) = streams::mark(stream) {
        pools().mark(lane, frees, Arc::new(mark));
    }
}

impl Entry {
    /// What is above the threshold and can go now shall go; what is freed later waits for the next synchronisation.
    fn is_due(&mut self) {
        if self.pool.reserved.now > self.threshold {
            let left = self.pool.least().max(self.threshold);
            if left < self.pool.reserved.now {
                self.due = Some(self.due.map_or(left, |due| due.min(left)));
            }
        }
    }
}

/// There may be something to be given back some time.
pub(super) fn may_be_unsettled(entry: &Entry) {
    if entry.pool.reserved.now > entry.threshold {
        UNSETTLED.store(true, Ordering::Release);
    }
}

fn is_settled(pools: &Pools) {
    let settled = |entry: &Entry| {
        !entry.destroyed && entry.pool.reserved.now <= entry.threshold && entry.pool.lanes().is_empty()
    };
    if pools.entries.values().all(settled) {
        UNSETTLED.store(false, Ordering::Release);
    }
}

/// A piece was given back: perhaps the last one of a pool that was destroyed.
pub(super) fn last_piece(entry: &mut Entry) {
    if entry.destroyed {
        entry.due = Some(0);
        UNSETTLED.store(true, Ordering::Release);
        if entry.pool.pieces == 0 {
            wake();
        }
    }
}

impl Pools {
    /// Behind what was freed in `lane` up to that number is a mark. Two of a lane are kept: the first is over the soonest, the last
    /// covers the most.
    pub(super) fn mark(&mut self, lane: Lane, frees: u64, mark: Arc<Mark>) {
        let marks = self.marks.entry(lane).or_default();
        marks.truncate(1);
        marks.push((frees, mark));
    }

    /// The last mark of every lane other than `lane`.
    pub(super) fn marks_of_others(&self, lane: Lane) -> Vec<(Lane, u64, Arc<Mark>)> {
        let others = self.marks.iter().filter(|(other, _)| **other != lane);
        others
            .filter_map(|(other, marks)| marks.last().map(|(frees, mark)| (*other, *frees, Arc::clone(mark))))
            .collect()
    }

    fn finished(&mut self, lane: Lane, frees: u64) {
        for entry in self.entries.values_mut() {
            entry.pool.finished(lane, frees);
        }
        self.unmark(lane, frees);
    }

    /// What was freed in `lane` up to that number needs no mark any more.
    fn unmark(&mut self, lane: Lane, frees: u64) {
        if let Some(marks) = self.marks.get_mut(&lane) {
            marks.retain(|(marked, _)| *marked > frees);
            if marks.is_empty() {
                self.marks.remove(&lane);
            }
        }
    }
}

/// What the thread is asked for.
#[derive(Debug, Default)]
struct Asked {
    /// How many looks were asked for, and how many of them were taken.
    looks: u64,
    taken: u64,
    /// Whether marks are put into default streams, too.
    hard: bool,
    /// When what is due shall be given back; and whether that is all that is finished by then.
    due: Option<Instant>,
    all: bool,
    started: bool,
}

static ASKED: Mutex<Asked> =
    Mutex::new(Asked { looks: 0, taken: 0, hard: false, due: None, all: false, started: false });
static BELL: Condvar = Condvar::new();
static DONE: Condvar = Condvar::new();

fn asked() -> MutexGuard<'static, Asked> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is due is given back in a moment.
#[cold]
pub(super) fn wake() {
    let mut asked = asked();
    let is_news = asked.due.is_none();
    asked.due.get_or_insert_with(|| Instant::now() + LATER);
    start(&mut asked);
    drop(asked);
    if is_news {
        BELL.notify_one();
    }
}

/// Asks about all lanes, and waits for the answers for so long at most: not at all while an earlier question is not answered.
#[cold]
pub(super) fn look(hard: bool, patience: Duration) {
    let mut asked = asked();
    let is_stuck = asked.looks != asked.taken;
    asked.looks += 1;
    asked.hard |= hard;
    let mine = asked.looks;
    if !start(&mut asked) {
        return;
    }
    BELL.notify_one();
    if !is_stuck || hard {
        drop(DONE.wait_timeout_while(asked, patience, |asked| asked.taken < mine));
    }
}

fn start(asked: &mut Asked) -> bool {
    if !life::active() {
        return false;
    }
    if !asked.started {
        asked.started = match threads::engine_thread("pools", keep_looking) {
            Ok(_) => true,
            Err(error) => {
                log::warning!(
                    "cannot start the thread that looks after pools: {error}; what other streams freed stays theirs"
                );
                false
            }
        };
    }
    asked.started
}

fn keep_looking() {
    loop {
        let (looks, hard, is_due, all) = {
            let mut asked = asked();
            loop {
                let now = Instant::now();
                let is_due = asked.due.is_some_and(|due| due <= now);
                if asked.looks != asked.taken || is_due {
                    if is_due {
                        asked.due = None;
                    }
                    let all = is_due && std::mem::take(&mut asked.all);
                    break (asked.looks, std::mem::take(&mut asked.hard), is_due, all);
                }
                asked = match asked.due {
                    Some(due) => {
                        BELL.wait_timeout(asked, due - now).unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => BELL.wait(asked).unwrap_or_else(PoisonError::into_inner),
                };
            }
        };
        ask_all(hard);
        asked().taken = looks;
        DONE.notify_all();
        if all {
            pools().entries.values_mut().for_each(Entry::is_due);
        }
        if is_due {
            release::settle();
            again_if_due();
        }
    }
}

/// What could not be given back yet is looked at again: its work was not finished.
fn again_if_due() {
    let waits = {
        let pools = pools();
        is_settled(&pools);
        pools.entries.values().any(|entry| entry.destroyed && entry.pool.pieces == 0)
    };
    if waits {
        let mut pools = pools();
        pools.entries.values_mut().filter(|entry| entry.destroyed).for_each(|entry| entry.due = Some(0));
        drop(pools);
        asked().due.get_or_insert_with(|| Instant::now() + LATER);
    }
}

fn ask_all(hard: bool) {
    let (lanes, frees) = {
        let pools = pools();
        let lanes: BTreeSet<Lane> = pools.entries.values().flat_map(|entry| entry.pool.lanes()).collect();
        (lanes, pools.frees)
    };
    for lane in lanes {
        let marks = pools().marks.get(&lane).cloned().unwrap_or_default();
        let mut covered = 0;
        let mut is_marked = false;
        for (marked, mark) in marks {
            match mark.answer() {
                Ok(true) => covered = covered.max(marked),
                _ => is_marked = true,
            }
        }
        if covered > 0 {
            pools().finished(lane, covered);
        }
        // One that is marked is busy: what was freed since is not finished either, but where every byte counts it is marked anew.
        if covered >= frees || is_marked && !hard {
            continue;
        }
        match order::ask(lane, hard) {
            Work::Finished => pools().finished(lane, frees),
            Work::Until(mark) => pools().mark(lane, frees, Arc::new(mark)),
            Work::Unknown => {}
        }
    }
}
