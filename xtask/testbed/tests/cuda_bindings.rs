//! Unmodified `cuda-bindings` from PyPI as a client: it allocates, copies both ways, is swapped out and in between, and
//! finds its bytes. Skipped with a loud line where Python, or the package, is not to be had.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nvshare_testbed::{Artifacts, Client, ClientCommand, Node, wait_for};

const PACKAGE: &str = "cuda-bindings";

/// A Python with the package: a virtual environment in the build directory, made once.
fn python() -> Option<PathBuf> {
    let directory = Artifacts::find().directory().join("python");
    fs::create_dir_all(&directory).expect("a directory for Python");
    let lock = File::create(directory.join("lock")).expect("a lock file");
    lock.lock().expect("the lock on the virtual environment");
    let python = directory.join("venv/bin/python");
    let works =
        |python: &Path| quiet(Command::new(python).args(["-c", "from cuda.bindings import driver"])).is_ok();
    if works(&python) {
        return Some(python);
    }
    let made = quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(directory.join("venv")))
        .and_then(|()| quiet(Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE])));
    match made {
        Ok(()) if works(&python) => Some(python),
        Ok(()) => panic!("{PACKAGE} was installed and cannot be imported"),
        Err(why) => {
            eprintln!("SKIPPED: no Python with {PACKAGE}: {why}");
            None
        }
    }
}

fn quiet(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// The Python program under way.
struct Program {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Program {
    fn start(mut command: ClientCommand) -> Program {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_bindings.py");
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut program = Program { child, lines };
        program.says("ready");
        program
    }

    fn says(&mut self, expected: &str) {
        let line = self.lines.next().map(|line| line.expect("text"));
        assert_eq!(line.as_deref(), Some(expected), "the end of the program, or another word");
    }

    /// Lets the program look at all of its bytes.
    fn checks(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "check").expect("the program reads");
        self.says("ok");
    }

    /// Lets it free everything and end.
    fn ends(mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn cuda_bindings_finds_its_bytes_while_it_is_swapped_out_and_in() {
    let Some(python) = python() else { return };
    let node =
        Node::builder().env("NVSHARE_SIM_CARD_BYTES", "128M").env("NVSHARE_EXTENT_BYTES", "4M").build();
    let mut client = node.client(python).with_shim();
    client.env("NVSHARE_DEBUG_SWAP_EVERY", "50ms");
    let mut program = Program::start(client);
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        program.checks();
    }
    program.ends();
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn cuda_bindings_finds_its_bytes_after_another_client_needed_the_card() {
    let Some(python) = python() else { return };
    let node = Node::builder().env("NVSHARE_SIM_CARD_BYTES", "96M").env("NVSHARE_EXTENT_BYTES", "4M").build();
    let agent = node.agent(["--lease-floor", "200ms", "--lease-ceiling", "200ms", "--reserve", "2M"]);
    let mut program = Program::start(node.client(python).with_shim());
    let mut other = Client::start(&mut node.workload("--bytes 64M --buffers 4 --seconds 6").with_shim());
    let swapped = || {
        let state = agent.state();
        let client =
            state["clients"].as_array()?.iter().find(|c| c["process"]["pid"] == program.child.id())?;
        client["devices"][0]["swapped"].as_u64().filter(|bytes| *bytes > 0)
    };
    wait_for("the program is swapped out", Duration::from_mins(1), swapped);
    for _ in 0..3 {
        program.checks();
    }
    other.succeed();
    program.checks();
    program.ends();
    assert_eq!(node.violations(), Vec::<String>::new());
}
