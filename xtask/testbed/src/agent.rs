//! A running agent, seen from outside: its process, its HTTP pages, its log.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::{Pages, signal, wait_for};

/// An agent that dies with this value.
pub struct Agent {
    child: Child,
    pages: Pages,
    log: PathBuf,
}

impl Agent {
    pub(crate) fn spawn(mut command: Command, log: PathBuf) -> Agent {
        let pages = Pages::at_a_free_address();
        command.arg("--listen").arg(pages.address().to_string());
        let file = File::options().create(true).append(true).open(&log).expect("the agent's log");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Agent { child, pages, log }
    }

    /// The agent's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its HTTP pages are.
    pub fn address(&self) -> SocketAddr {
        self.pages.address()
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// After 30 seconds, or when the agent exits, with its log.
    pub fn wait_ready(&mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().expect("the state of the agent") {
                panic!("the agent ended ({status}); its log:\n{}", self.log());
            }
            let answer = self.get("/readyz");
            if matches!(answer, Ok((200, _))) {
                return;
            }
            // Drop prints the log.
            assert!(Instant::now() < end, "the agent does not get ready; /readyz: {answer:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `GET path`: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.pages.get(path)
    }

    /// `/api/v1/state`.
    ///
    /// # Panics
    /// Where the agent does not answer it.
    pub fn state(&self) -> Value {
        self.try_state().unwrap_or_else(|error| panic!("{error:#}; the agent's log:\n{}", self.log()))
    }

    /// `/api/v1/state`, or why not.
    pub fn try_state(&self) -> Result<Value> {
        self.pages.state()
    }

    /// What the agent logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the agent to stop in order and waits.
    ///
    /// # Panics
    /// Where it is still there after 20 seconds.
    pub fn stop(mut self) -> ExitStatus {
        signal(self.child.id(), libc::SIGTERM).expect("a child that was not waited for");
        wait_for("the agent stops", Duration::from_secs(20), || {
            self.child.try_wait().expect("the state of the agent")
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Where it was ended by the test it does not answer.
            let state = self.try_state().map_or_else(|error| format!("{error:#}"), |state| state.to_string());
            eprintln!("the agent's state: {state}");
        }
        self.kill();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}
