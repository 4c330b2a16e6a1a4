//! Running programs on a node, bare and under the library, with a limit.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nvshare_testbed::{Agent, Artifacts, ClientCommand, Node, NodeBuilder, is_root};

use super::programs;

/// Short turns, and little held back, so that small cards do.
pub(crate) const TURNS: [&str; 6] = ["--lease-floor", "200ms", "--lease-ceiling", "200ms", "--reserve", "2M"];
/// A hang is long, whatever else the machine does.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A node with cards of this size.
pub(crate) fn cards(count: usize, bytes: &str) -> NodeBuilder {
    Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", bytes)
        .env("NVSHARE_SIM_CARDS", count.to_string())
        .env("NVSHARE_SIM_CONTEXT_BYTES", "8M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "2000000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
}

/// One card of this size.
pub(crate) fn card(bytes: &str) -> Node {
    cards(1, bytes).build()
}

/// An agent that observes nothing.
pub(crate) fn agent(node: &Node, flags: &[&str]) -> Agent {
    node.agent(flags.iter().chain(&["--no-uprobes"]))
}

/// A program of this folder with these arguments (separated by spaces), bare.
pub(crate) fn bare(node: &Node, program: &str, arguments: &str) -> ClientCommand {
    let mut command = node.client(programs::program(program));
    let mut path = OsString::from(node.path().join("lib"));
    path.push(":");
    path.push(programs::directory());
    command.args(arguments.split_whitespace()).env("LD_LIBRARY_PATH", path);
    command
}

/// The same under the library.
pub(crate) fn hooked(node: &Node, program: &str, arguments: &str) -> ClientCommand {
    bare(node, program, arguments).with_shim()
}

/// The same with everything swapped out and in this often.
pub(crate) fn swapped(node: &Node, program: &str, arguments: &str, every: &str) -> ClientCommand {
    let mut command = hooked(node, program, arguments);
    command.env("NVSHARE_DEBUG_SWAP_EVERY", every);
    command
}

/// A program under way. It is killed with this value.
pub(crate) struct Running {
    child: Child,
    said: File,
}

/// How a program ended: with this status, or not within its limit.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) said: String,
}

impl Ended {
    /// Panics unless it ended well.
    #[track_caller]
    pub(crate) fn assert_well(&self, what: &str) {
        match self.status {
            None => panic!("{what}: not done in time; it said:\n{}", self.said),
            Some(status) => assert!(status.success(), "{what}: {status}; it said:\n{}", self.said),
        }
        // Without an agent it would prove nothing of what it does beside one.
        assert!(!self.said.contains("the agent refused this process"), "{what}: {}", self.said);
    }
}

impl Running {
    /// Starts it; what it says on both outputs is kept.
    pub(crate) fn start(command: &mut Command) -> Running {
        let said = tempfile::tempfile().expect("a temporary file");
        let output = || said.try_clone().expect("a descriptor");
        command.stdin(Stdio::piped()).stdout(output()).stderr(output());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Running { child, said }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        let length = self.said.metadata().expect("a length").len() as usize;
        let mut bytes = vec![0; length];
        // Not through the offset, which is the program's as well.
        let read = std::os::unix::fs::FileExt::read_at(&self.said, &mut bytes, 0).expect("what it said");
        bytes.truncate(read);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it has said `what`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &str) {
        self.wait_within(LIMIT, what);
    }

    /// The same, so long, for what takes long where others use the processors too.
    #[track_caller]
    pub(crate) fn wait_within(&mut self, limit: Duration, what: &str) {
        let end = Instant::now() + limit;
        while !self.said().contains(what) {
            let status = self.child.try_wait().expect("the state of a program");
            assert!(
                status.is_none() && Instant::now() < end,
                "no `{what}`; {status:?}, it said: {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the state of a program").is_none()
    }

    /// Gives it a line to read.
    pub(crate) fn tell(&mut self) {
        let input = self.child.stdin.as_mut().expect("its input is a pipe");
        input.write_all(b"go\n").expect("it reads");
    }

    /// Waits for its end, so long, and then kills it.
    pub(crate) fn end(mut self, limit: Duration) -> Ended {
        let end = Instant::now() + limit;
        loop {
            let status = self.child.try_wait().expect("the state of a program");
            if status.is_some() || Instant::now() > end {
                let threads = if status.is_none() { threads(self.id()) } else { String::new() };
                return Ended { status, said: self.said() + &threads };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where the threads of a program that hangs are: their names, whether they sleep, and in what of the kernel.
fn threads(process: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let mut text = String::new();
    for task in tasks {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, wchan, call) = (read("comm"), read("wchan"), read("syscall"));
        let state = read("status").lines().find(|line| line.starts_with("State")).unwrap_or("?").to_owned();
        let _ = writeln!(text, "{:15} {state} {wchan:20} syscall {}", name.trim(), call.trim());
    }
    text
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it to its end, or until it takes too long.
pub(crate) fn run(mut command: ClientCommand) -> Ended {
    Running::start(&mut command).end(LIMIT)
}

/// Runs the program bare, which must go well, then `changed` (under the library) on another node of the same kind, which must
/// go as well.
#[track_caller]
pub(crate) fn as_bare(
    node: impl Fn() -> Node,
    program: &str,
    arguments: &str,
    changed: impl FnOnce(&Node) -> ClientCommand,
) {
    let first = node();
    run(bare(&first, program, arguments)).assert_well("bare");
    drop(first);
    let second = node();
    run(changed(&second)).assert_well("under the library");
}

/// What the agent says of the first device of the client in this process.
fn of_client(agent: &Agent, process: u32) -> Option<serde_json::Value> {
    let state = agent.state();
    let clients = state["clients"].as_array()?;
    let client = clients.iter().find(|client| client["process"]["pid"] == process)?;
    Some(client["devices"][0].clone())
}

/// What the agent hears, in MiB, of memory of a client that stays for this reason, as soon as that is `expected`.
pub(crate) fn heard(agent: &Agent, process: u32, reason: &str, expected: u64) -> u64 {
    let heard = || {
        let client = of_client(agent, process);
        client.and_then(|client| client["unswappable_reasons"][reason].as_u64()).unwrap_or(0) >> 20
    };
    let end = Instant::now() + LIMIT / 3;
    while heard() != expected && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    heard()
}

/// What a client has on the card, of what can be moved.
pub(crate) fn resident(agent: &Agent, process: u32) -> Option<u64> {
    of_client(agent, process)?["resident"].as_u64()
}

/// What a client needs there to run.
pub(crate) fn needs(agent: &Agent, process: u32) -> Option<u64> {
    of_client(agent, process)?["needed"].as_u64()
}

/// A node whose agents observe its programs, and nothing else of the machine; `None`, said loudly, where uprobes cannot be used.
pub(crate) fn observed(cards: NodeBuilder) -> Option<Node> {
    if !is_root() || Artifacts::find().ebpf().is_none() {
        eprintln!("SKIPPED: uprobes need root and the built eBPF programs");
        return None;
    }
    Some(cards.alone().build())
}
