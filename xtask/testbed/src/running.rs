//! A client under way, and what it said at the end.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::wait_for;

/// No client of a test works longer than this, even beside a busy compiler.
const LIMIT: Duration = Duration::from_mins(3);

/// A started client. It is killed with this value.
pub struct Client {
    child: Child,
}

impl Client {
    /// Starts it. Its standard output is read by [`Client::succeed`].
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(command: &mut Command) -> Client {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Client { child: command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")) }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it makes no end.
    pub fn end(&mut self) -> ExitStatus {
        let what = format!("client {} ends", self.id());
        wait_for(&what, LIMIT, || self.child.try_wait().expect("the state of a client"))
    }

    /// Waits for the end of a workload, and checks that it was a good one. Its report.
    ///
    /// # Panics
    /// Where it failed, or a byte was not what it should be.
    pub fn succeed(&mut self) -> Value {
        let id = self.id();
        let status = self.end();
        let mut output = String::new();
        let mut pipe = self.child.stdout.take().expect("standard output is a pipe");
        std::io::Read::read_to_string(&mut pipe, &mut output).expect("text on standard output");
        assert!(status.success(), "client {id} failed ({status}): {output}");
        let report: Value = serde_json::from_str(&output).expect("a report");
        assert_eq!(report["data_errors"], 0, "client {id}: {report}");
        report
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}
