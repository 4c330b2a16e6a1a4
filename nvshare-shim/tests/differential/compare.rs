//! Runs scripts bare and under the library, and compares what was written down.
//!
//! The rule: line for line the same, but for words that begin with `~`: free memory, which may differ by what the library
//! needs itself and by the size of blocks ([`ROUGHLY`]).

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nvshare_testbed::Node;

use crate::script::Script;

/// By how much two answers about free memory may differ.
const ROUGHLY: u64 = 24 << 20;
/// How long is waited for a run.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// For the next step: a run that takes longer hangs.
    pub(crate) step: Duration,
    /// For all of it, if not for ever: then nothing is known of it.
    pub(crate) end: Option<Instant>,
}

impl Patience {
    /// Where a result counts.
    pub(crate) const ALL: Patience = Patience { step: Duration::from_secs(20), end: None };
}

/// What is wrong with a script.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) seed: u64,
    pub(crate) what: String,
}

/// What a run of scripts left: for each script its lines; and how the run ended.
struct Run {
    transcripts: Vec<(u64, Vec<String>)>,
    end: Result<(), String>,
    violations: Vec<String>,
}

fn node() -> Node {
    Node::builder()
        .env("NVSHARE_SIM_CARDS", "2")
        .env("NVSHARE_SIM_CARD_BYTES", "128M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "100G")
        .env("NVSHARE_SIM_DEVICE_BYTES_PER_SECOND", "400G")
        .env("NVSHARE_SIM_LINK_LATENCY_US", "0")
        .env("NVSHARE_EXTENT_BYTES", "2M")
        .build()
}

struct Client {
    child: Child,
    node: Node,
    transcript: std::path::PathBuf,
}

fn start(scripts: &[Script], with_library: bool) -> Client {
    let node = node();
    let [script, transcript, errors] = ["scripts", "transcript", "errors"].map(|name| node.path().join(name));
    let text: String = scripts.iter().map(Script::to_string).collect();
    std::fs::write(&script, text).expect("the scripts");
    let program = std::env::current_exe().expect("this executable");
    let mut command = if with_library { node.client(program).with_shim() } else { node.client(program) };
    command
        .args(["role", "--exact", "--nocapture", "--test-threads=1"])
        // What it said last is told: the message of a panic, and what the simulator said before.
        .env("RUST_BACKTRACE", "0")
        .env("NVSHARE_DIFFERENTIAL_SCRIPTS", script)
        .env("NVSHARE_DIFFERENTIAL_TRANSCRIPT", &transcript)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(errors).expect("a file for messages"));
    if with_library {
        let (ours, theirs) = sockets();
        let numbers = [ours.as_raw_fd(), theirs.as_raw_fd()];
        command.env("NVSHARE_DIFFERENTIAL_SWAPS", numbers[0].to_string());
        command.env("NVSHARE_DEBUG_SWAP_BY", numbers[1].to_string());
        inherit(&mut command, numbers);
        let child = command.spawn().expect("this executable again");
        return Client { child, node, transcript };
    }
    let child = command.spawn().expect("this executable again");
    Client { child, node, transcript }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .expect("a pair of sockets")
}

/// Lets the child keep descriptors. It has copies of its own; the caller's are closed at the end of the caller.
fn inherit(command: &mut Command, numbers: [i32; 2]) {
    // SAFETY: fcntl is async-signal-safe, and the closure touches no memory of the parent.
    unsafe {
        command.pre_exec(move || {
            for number in numbers {
                if libc::fcntl(number, libc::F_SETFD, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

impl Client {
    /// Waits for the end; who writes nothing for too long is killed. `None`: there was no time for it.
    fn finish(mut self, patience: Patience) -> Option<Run> {
        let (mut size, mut since) = (0, Instant::now());
        let end = loop {
            if let Some(status) = self.child.try_wait().expect("the state of a client") {
                let errors = std::fs::read_to_string(self.node.path().join("errors")).unwrap_or_default();
                let tail: Vec<&str> = errors.lines().rev().take(8).collect();
                break if status.success() { Ok(()) } else { Err(format!("ended with {status}: {tail:?}")) };
            }
            let now = std::fs::metadata(&self.transcript).map_or(0, |file| file.len());
            if now != size {
                (size, since) = (now, Instant::now());
            } else if since.elapsed() > patience.step {
                self.kill();
                break Err("hangs".to_owned());
            }
            if patience.end.is_some_and(|end| Instant::now() > end) {
                self.kill();
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let transcripts = read(&self.transcript);
        Some(Run { transcripts, end, violations: self.node.violations() })
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(transcript: &Path) -> Vec<(u64, Vec<String>)> {
    let text = std::fs::read_to_string(transcript).unwrap_or_default();
    let mut all: Vec<(u64, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(seed) = line.strip_prefix("# ") {
            all.extend(seed.parse().ok().map(|seed| (seed, Vec::new())));
        } else if let Some((_, lines)) = all.last_mut() {
            lines.push(line.to_owned());
        }
    }
    all
}

fn same(one: &str, other: &str) -> bool {
    let (ones, others): (Vec<_>, Vec<_>) = (one.split(' ').collect(), other.split(' ').collect());
    let rough = |word: &str| word.strip_prefix('~').and_then(|number| number.parse::<u64>().ok());
    ones.len() == others.len()
        && ones.iter().zip(others).all(|(one, other)| match (rough(one), rough(other)) {
            (Some(one), Some(other)) => one.abs_diff(other) <= ROUGHLY,
            _ => *one == other,
        })
}

/// Runs the scripts both ways at once; the first difference, if there is one. What comes after it in the same run does not
/// count: it may come of it.
pub(crate) fn first_difference(scripts: &[Script], patience: Patience) -> Option<Difference> {
    let (bare, with) = (start(scripts, false), start(scripts, true));
    // Both to their end, whatever came of the first: they are processes.
    let (bare, with) = (bare.finish(patience), with.finish(patience));
    compared(scripts, &bare?, &with?)
}

/// Runs the scripts bare twice. A difference is the fault of the scripts, or of the driver below: something in them is
/// ordered by nothing.
pub(crate) fn first_difference_of_bare_runs(scripts: &[Script]) -> Option<Difference> {
    let (one, other) = (start(scripts, false), start(scripts, false));
    let (one, other) = (one.finish(Patience::ALL), other.finish(Patience::ALL));
    let mut difference = compared(scripts, &one?, &other?)?;
    difference.what = format!("BARE TWICE, so that this test is at fault: {}", difference.what);
    Some(difference)
}

/// The step that was done last, or is not over.
fn last_step(lines: &[String]) -> &str {
    lines.iter().rev().find(|line| !line.starts_with(' ')).map_or("", String::as_str)
}

fn compared(scripts: &[Script], bare: &Run, with: &Run) -> Option<Difference> {
    let nothing = Vec::new();
    for (index, script) in scripts.iter().enumerate() {
        let difference = |what: String| Some(Difference { seed: script.seed, what });
        let of = |run: &Run| run.transcripts.get(index).map_or(nothing.clone(), |(_, lines)| lines.clone());
        let (one, other) = (of(bare), of(with));
        for (line, bare_line) in one.iter().enumerate() {
            let step = last_step(&one[..line]);
            match other.get(line) {
                Some(with_line) if same(bare_line, with_line) => {}
                Some(with_line) => {
                    let [bare_line, with_line] = [bare_line.trim(), with_line.trim()];
                    return difference(format!("{step}\n  bare: {bare_line}\n  with: {with_line}"));
                }
                None => {
                    let end = with.end.as_ref().err().cloned().unwrap_or_default();
                    let last = last_step(&other);
                    return difference(format!("the run under the library {end}, after {last}"));
                }
            }
        }
        let last = index + 1 == scripts.len() || bare.transcripts.len() == index + 1;
        if let (true, Err(end)) = (last, &bare.end) {
            return difference(format!("the bare run {end}, after {}", last_step(&one)));
        }
        if let (true, Err(end)) = (last, &with.end) {
            return difference(format!("the run under the library {end}"));
        }
    }
    let told = [("bare", &bare.violations), ("under the library", &with.violations)];
    let (who, violations) = told.into_iter().find(|(_, violations)| !violations.is_empty())?;
    Some(Difference { seed: 0, what: format!("{who}, the driver complains: {violations:?}") })
}
