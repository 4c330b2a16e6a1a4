//! What a running observer has told so far.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nvshare_agent::observer::{Observer, Options};
use nvshare_agent_core::observation::{Activity, Counts, Observation, ObserverState, Seen, What};
use nvshare_common::probe::Call;

/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(20);

type Told = Arc<(Mutex<Vec<Seen>>, Condvar)>;

/// An observer and its ear.
pub(crate) struct Observing {
    observer: Option<Observer>,
    told: Told,
}

/// Observes `libraries` and nothing else; `None`, said loudly, where the kernel does not let us.
pub(crate) fn observe(libraries: &[&Path]) -> Option<Observing> {
    let libraries = libraries.iter().map(|path| path.to_path_buf()).collect();
    observe_with(|object| Options { libraries, discover: false, sample_every: 1, ..Options::new(object) })
}

/// Observes as asked.
pub(crate) fn observe_with(options: impl FnOnce(PathBuf) -> Options) -> Option<Observing> {
    let Some(object) = nvshare_testbed::Artifacts::find().ebpf() else {
        eprintln!(
            "SKIPPED: there is no nvshare.bpf.o: nothing about the uprobes was tested (`cargo xtask build`)"
        );
        return None;
    };
    let told: Told = Arc::default();
    let sink = Arc::clone(&told);
    let observer = Observer::start(options(object), move |batch| {
        sink.0.lock().unwrap().extend(batch);
        sink.1.notify_all();
        true
    })
    .unwrap();
    let seen = Observing { observer: Some(observer), told };
    let health = seen.wait("the observer's health", |told| last_health(told).cloned());
    if !health.loaded
        && (!nvshare_testbed::is_root()
            || health.problems.iter().any(|problem| problem.contains("does not let")))
    {
        eprintln!("SKIPPED: nothing about the uprobes was tested: {}", health.problems.join("; "));
        return None;
    }
    assert!(health.loaded && health.scanned, "{health:?}");
    Some(seen)
}

/// The observer's last word on itself among these.
pub(crate) fn last_health(told: &[Seen]) -> Option<&ObserverState> {
    told.iter().rev().find_map(|seen| match seen {
        Seen::Observer(health) => Some(health),
        Seen::Process(_) => None,
    })
}

impl Observing {
    /// Waits until `condition` finds what it looks for in all that was told.
    pub(crate) fn wait<T>(&self, what: &str, condition: impl Fn(&[Seen]) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        let mut told = self.told.0.lock().unwrap();
        loop {
            if let Some(found) = condition(&told) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {what}; last told: {:#?}",
                told.iter().rev().take(5).collect::<Vec<_>>()
            );
            told = self.told.1.wait_timeout(told, left).unwrap().0;
        }
    }

    /// The observer's last word on itself.
    pub(crate) fn health(&self) -> ObserverState {
        last_health(&self.told.0.lock().unwrap()).unwrap().clone()
    }

    /// The final counts of a process that has ended.
    pub(crate) fn counts_of_dead(&self, pid: u32) -> Counts {
        self.wait(&format!("the end of process {pid}"), |told| {
            of(told, pid).any(|what| *what == What::Exited).then(|| last_counts(told, pid).unwrap())
        })
    }

    /// Waits until a living process's counts are these.
    pub(crate) fn wait_for_count(&self, pid: u32, call: Call, expected: u64) {
        self.wait(&format!("{expected} {} by process {pid}", call.name()), |told| {
            (last_counts(told, pid)?.application[call as usize] == expected).then_some(())
        });
    }

    /// Everything that was told.
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.told.0.lock().unwrap().clone()
    }

    /// Stops the observer; everything it told.
    pub(crate) fn stop(mut self) -> Vec<Seen> {
        self.observer.take().unwrap().stop();
        self.all()
    }
}

/// What was told of processes, in order.
pub(crate) fn observed(told: &[Seen]) -> impl DoubleEndedIterator<Item = &Observation> {
    told.iter().filter_map(|seen| match seen {
        Seen::Process(observation) => Some(observation),
        Seen::Observer(_) => None,
    })
}

/// What was told of one process, in order.
pub(crate) fn of(told: &[Seen], pid: u32) -> impl DoubleEndedIterator<Item = &What> {
    observed(told).filter(move |seen| seen.process.pid == pid).map(|seen| &seen.what)
}

/// What a process did in all, by the last word on it.
pub(crate) fn last_activity(told: &[Seen], pid: u32) -> Option<&Activity> {
    of(told, pid).rev().find_map(|what| match what {
        What::Activity(activity) => Some(activity),
        _ => None,
    })
}

pub(crate) fn last_counts(told: &[Seen], pid: u32) -> Option<Counts> {
    last_activity(told, pid).map(|activity| *activity.counts)
}

/// Counts by name, without the zeros.
pub(crate) fn named(counts: &[u64; Call::COUNT]) -> BTreeMap<&'static str, u64> {
    Call::ALL
        .iter()
        .map(|call| (call.name(), counts[*call as usize]))
        .filter(|(_, count)| *count != 0)
        .collect()
}
