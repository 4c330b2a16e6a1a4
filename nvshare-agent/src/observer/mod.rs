//! The observer: what every process on the node asks of the CUDA driver, seen by uprobes.
//!
//! One thread owns it all: it loads the programs (`programs`), finds libcuda files (`mappings` as they are mapped,
//! `find` at start and now and then), decides where probes sit (`library`, `site`), reads counts (`slots`) and
//! records, follows processes to their death (`watch`) and tells the conductor in observations (`translate`). What the
//! kernel module for managed memory does is seen by kprobes, where they can be had (`uvm`).
//!
//! Everything here may be missing (no permission, no object, an old kernel): then [`ObserverState`] says what and what helps,
//! and the agent runs on. Losing an observation may cost speed, never data.

mod attached;
mod attachments;
mod bpf;
pub mod doors;
mod find;
mod guard;
mod kernel_log;
mod library;
mod load_error;
mod mappings;
mod options;
mod part;
mod programs;
mod rewrites;
mod seccomp;
mod share;
mod site;
mod slots;
mod state;
mod translate;
mod uvm;
mod watch;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use nvshare_agent_core::observation::{ObserverState, Seen};
use rustix::event::{EventfdFlags, eventfd};

use crate::tasks::caught;
use state::State;

pub use library::{Library, LibraryError, Point};
pub use load_error::LoadError;
pub use options::{Flags, Options, SCAN_EVERY};
pub use part::{Part, PartError};
pub use programs::AttachError;
pub use site::{Site, choose as choose_site};

/// A running observer. Dropping it takes every probe away.
#[derive(Debug)]
pub struct Observer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Starts observing. `tell` gets every batch of observations, in order, on the observer's thread; it may block (then
    /// records wait in the kernel, and are counted as lost when there is no more room), and ends the observer by
    /// answering `false`. The first batch holds the [`ObserverState`] after the first look at all processes.
    pub fn start(
        options: Options,
        tell: impl FnMut(Vec<Seen>) -> bool + Send + 'static,
    ) -> io::Result<Observer> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("observer".into())
            .spawn(move || run(&options, &stopped, tell))?;
        Ok(Observer { stop, thread: Some(thread) })
    }

    /// Takes every probe away, tells the last counts and waits until that is done.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It can only fail when it was written 2^64 times.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the observer ended in a panic");
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(options: &Options, stop: &OwnedFd, mut tell: impl FnMut(Vec<Seen>) -> bool) {
    let ended = guard(|| match State::begin(options, stop) {
        Ok(state) => state.run(&mut tell),
        Err(error) => Some(error.to_string()),
    });
    if let Some(why) = ended {
        tracing::warn!(why, "nothing is observed");
        tell(vec![Seen::Observer(ObserverState { problems: vec![why], ..ObserverState::default() })]);
    }
}

/// Observes. Says why it ended, if nobody ended it: a panic is a reason like others.
fn guard(observe: impl FnOnce() -> Option<String>) -> Option<String> {
    // Whatever it left half done went with it: only `tell` is used afterwards.
    caught(observe).unwrap_or_else(|why| Some(format!("the observer ended, which it never should: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observer_that_panics_leaves_a_reason() {
        let why = guard(|| panic!("as if it were wrong")).unwrap();
        assert!(why.contains("report this") && why.contains("as if it were wrong"), "{why}");
        assert_eq!(guard(|| None), None);
    }
}
