//! The processes that share the card: started together, watched to their ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nvshare_testbed::ClientCommand;
use serde::Deserialize;

use super::progress::Progress;

/// After this time a demo that should take seconds has hung.
const LIMIT: Duration = Duration::from_mins(30);

/// What the demo needs of a workload's report.
#[derive(Deserialize)]
pub(crate) struct Outcome {
    pub(crate) steps: Times,
    pub(crate) first_steps: Times,
    pub(crate) switches: u64,
    pub(crate) data_errors: u64,
}

/// See the workload's report.
#[derive(Deserialize)]
pub(crate) struct Times {
    pub(crate) fastest: f64,
    pub(crate) median: f64,
    pub(crate) slowest: f64,
}

/// Runs all commands at once; `watch` is called about ten times a second meanwhile. Their reports, in their order, and
/// how long it took from the first start to the last end.
pub(crate) fn run(
    commands: Vec<ClientCommand>,
    progress: &Progress,
    mut watch: impl FnMut(),
) -> Result<(Vec<Outcome>, Duration)> {
    let start = Instant::now();
    let mut children = Vec::new();
    for mut command in commands {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        children.push(Running(command.spawn().context("cannot start the workload")?));
    }
    thread::scope(|scope| {
        let pipes: Vec<_> = children
            .iter_mut()
            .map(|child| {
                let errors = child.0.stderr.take().expect("a pipe");
                let mut output = child.0.stdout.take().expect("a pipe");
                let errors = scope.spawn(move || follow(errors, progress));
                let output = scope.spawn(move || {
                    let mut text = String::new();
                    output.read_to_string(&mut text).map(|_| text)
                });
                (errors, output)
            })
            .collect();
        let mut seconds = None;
        let mut ends = vec![None; children.len()];
        while ends.iter().any(Option::is_none) {
            watch();
            if start.elapsed() > LIMIT {
                // The readers end with the processes.
                children.clear();
                bail!("the demo made no end within {LIMIT:?}");
            }
            thread::sleep(Duration::from_millis(20));
            for (child, end) in children.iter_mut().zip(&mut ends) {
                if end.is_none() {
                    *end = child.0.try_wait()?;
                }
            }
            seconds = Some(start.elapsed());
        }
        let mut outcomes = Vec::new();
        let mut failed = Vec::new();
        for (number, ((errors, output), end)) in pipes.into_iter().zip(ends).enumerate() {
            let errors = errors.join().expect("a reader that does not panic")?;
            let output = output.join().expect("a reader that does not panic")?;
            let end = end.expect("it ended");
            for line in &errors {
                progress.say(&format!("process {number}: {line}"));
            }
            match serde_json::from_str(&output) {
                // Status 2 is a report with data errors in it.
                Ok(outcome) if end.success() || end.code() == Some(2) => outcomes.push(outcome),
                _ => failed.push(format!("process {number} failed ({end})")),
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join(", "));
        }
        Ok((outcomes, seconds.unwrap_or_default()))
    })
}

/// Counts the lines that tell progress, keeps the others.
fn follow(errors: impl Read, progress: &Progress) -> std::io::Result<Vec<String>> {
    let mut others = Vec::new();
    for line in BufReader::new(errors).lines() {
        let line = line?;
        if line == "filled" || line.starts_with("iteration ") {
            progress.step();
        } else {
            others.push(line);
        }
    }
    Ok(others)
}

/// A child that does not outlive the demo.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
