//! A client that a test leads line by line, with an agent that the test is.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nvshare_common::ids::DeviceId;
use nvshare_common::protocol::{ToAgent, ToShim};
use nvshare_testbed::{ClientCommand, Node};

use super::MIB;
use super::agent;
use super::agent::Listener;

/// A client that a test leads line by line.
pub(crate) struct Led {
    pub(crate) child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Led {
    pub(crate) fn start(mut command: ClientCommand) -> Led {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Led { child, input, output }
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "the client ended: {:?}",
                self.child.wait()
            );
            // The test harness of the client writes to the same pipe.
            if let Some((_, said)) = line.split_once('@') {
                return said.trim().to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.answer()
    }

    pub(crate) fn end(mut self) {
        self.say("end");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the client ended with {status}");
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A led client with `blocks` arenas of one block each and one allocation of `bytes`, running.
pub(crate) fn led(
    node: &Node,
    command: ClientCommand,
    bytes: u64,
    arenas: u64,
) -> (Led, Listener, agent::Agent, DeviceId) {
    let listener = Listener::bind(&node.socket());
    let mut client = Led::start(command);
    let mut agent = listener.welcome();
    assert_eq!(client.answer(), "ready");
    assert_ne!(client.ask(&format!("alloc {bytes}")), "out of memory");
    let (device, total) = agent.wanted();
    assert_eq!(total, bytes);
    agent.grant(device, bytes);
    agent.resident();
    for number in 0..arenas {
        agent.arena(number, 2 * MIB);
        agent.until("ArenaReady", |message| matches!(message, ToAgent::ArenaReady { .. }).then_some(()));
    }
    (client, listener, agent, device)
}

/// The client has heard all that was said before.
pub(crate) fn heard(agent: &mut agent::Agent, device: DeviceId) {
    let ticket = agent.ticket();
    agent.send(&ToShim::Reclaim { ticket, device });
    agent.until("SwapOutDone", |message| match message {
        ToAgent::SwapOutDone { ticket: of, .. } => (*of == ticket).then_some(()),
        _ => None,
    });
}

/// Waits until the client is told that it has so much free memory of so much.
pub(crate) fn sees(client: &mut Led, free: u64, total: u64) {
    let expected = format!("{free} {total}");
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = client.ask("info");
        if answer == expected {
            return;
        }
        assert!(Instant::now() < limit, "the client sees {answer} instead of {expected}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
