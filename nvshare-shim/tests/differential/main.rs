//! The same calls bare and under the library: results, errors, answers about memory and contents must be the same, wherever
//! memory is moved in between. Scripts are random; each comes from a seed, so that it can be had again.
//!
//! - [`script`]: what a script is; [`generate`]: random ones
//! - [`execute`]: the client, this binary again; [`world`] and the files beside it: what its steps do; [`peer`]: a second process
//! - [`compare`]: both runs, and the rule; [`shrink`]: shorter scripts
//!
//! More seeds: `NVSHARE_DIFFERENTIAL_SEEDS=FROM..TO cargo test -p nvshare-shim --test differential`. Without some steps, to see
//! what else there is: `NVSHARE_DIFFERENTIAL_WITHOUT=VERB,..`. A script from a file: `NVSHARE_DIFFERENTIAL_REPLAY=FILE`.
//!
//! Every tenth script is run twice without the library, too: where those differ, this test is at fault. What is known to differ
//! is left out where the step is done, with the reason ("Known to differ").
//!
//! In scripts whose threads run freely (seeds that end in 9) no step may concern what another thread does: a
//! `cuCtxSynchronize` ends the captures of others, bare too, and once looked like a capture that the library had lost.

#![expect(unsafe_code, reason = "the driver is called as programs do")]
#![expect(
    clippy::too_many_lines,
    clippy::match_same_arms,
    reason = "one arm for each step, and for each chance of it"
)]
#![expect(clippy::unused_self, reason = "steps ask the world, also where the driver answers for it")]
#![expect(clippy::format_push_string, reason = "transcripts are short")]

mod arrays;
mod compare;
mod contexts;
mod execute;
mod generate;
mod graph_memory;
mod graphs;
mod memory;
mod peer;
mod questions;
mod script;
mod shrink;
mod uses;
mod vmm;
mod work;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use compare::{Difference, Patience, first_difference, first_difference_of_bare_runs};
use script::Script;

/// How many scripts a client does.
const BATCH: usize = 25;
/// How many failing scripts are told of before the test ends.
const ENOUGH: usize = 3;
/// Seeds where nothing else is asked for.
const SEEDS: std::ops::Range<u64> = 0..1000;

/// Not a test: the client program, when a test below starts it.
#[test]
fn role() {
    if peer::serve() {
        return;
    }
    if let (Ok(scripts), Ok(transcript)) =
        (std::env::var("NVSHARE_DIFFERENTIAL_SCRIPTS"), std::env::var("NVSHARE_DIFFERENTIAL_TRANSCRIPT"))
    {
        execute::all(&scripts, &transcript);
        // Not through the exit handlers of the test's harness, which wait for its threads.
    }
}

fn seeds() -> std::ops::Range<u64> {
    let asked = std::env::var("NVSHARE_DIFFERENTIAL_SEEDS").unwrap_or_default();
    let ends = asked.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    assert!(
        ends.is_some() || asked.is_empty(),
        "NVSHARE_DIFFERENTIAL_SEEDS={asked}: expected such as 0..1000"
    );
    ends.unwrap_or(SEEDS)
}

#[test]
fn random_scripts_do_the_same_with_and_without_the_library() {
    if let Ok(file) = std::env::var("NVSHARE_DIFFERENTIAL_REPLAY") {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        for script in Script::parse_all(&text).unwrap_or_else(|error| panic!("{file}: {error}")) {
            let difference = first_difference(std::slice::from_ref(&script), Patience::ALL);
            assert!(difference.is_none(), "{}", told(&script, &difference.expect("one")));
        }
        return;
    }
    let mut scripts: Vec<Script> = seeds().map(generate::script).collect();
    let without = std::env::var("NVSHARE_DIFFERENTIAL_WITHOUT").unwrap_or_default();
    let without =
        script::verbs(&without).unwrap_or_else(|why| panic!("NVSHARE_DIFFERENTIAL_WITHOUT={without}: {why}"));
    for script in &mut scripts {
        script.ops.retain(|op| !without.contains(&op.verb()));
    }
    let batches: Vec<&[Script]> = scripts.chunks(BATCH).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let checked = Mutex::new(Vec::new());
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                while let Some(batch) = batches.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let found = check(batch);
                    checked.lock().expect("the failures").extend(found);
                    let enough = || failed.lock().expect("the failures").len() >= ENOUGH;
                    let mut rest = *batch;
                    while !rest.is_empty() && !enough() {
                        let Some(difference) = first_difference(rest, Patience::ALL) else { break };
                        let at = rest.iter().position(|script| script.seed == difference.seed).unwrap_or(0);
                        failed.lock().expect("the failures").push(report(
                            &rest[at],
                            &rest[..=at],
                            difference,
                        ));
                        rest = &rest[at + 1..];
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("the failures");
    failed.extend(checked.into_inner().expect("the failures"));
    let steps: usize = scripts.iter().map(|script| script.ops.len()).sum();
    eprintln!("{} scripts, {steps} steps", scripts.len());
    assert!(failed.is_empty(), "{} scripts or more differ\n\n{}", failed.len(), failed.join("\n"));
}

/// Every tenth script is done twice without the library, and must do the same.
fn check(scripts: &[Script]) -> Option<String> {
    let few: Vec<Script> = scripts.iter().filter(|script| script.seed % 10 == 0).cloned().collect();
    let difference = first_difference_of_bare_runs(&few)?;
    let script = few.iter().find(|script| script.seed == difference.seed).unwrap_or(few.first()?);
    Some(told(script, &difference))
}

/// Shortens a script that failed, alone if it fails alone, and tells of it.
fn report(script: &Script, with_those_before: &[Script], difference: Difference) -> String {
    if let Some(alone) = first_difference(std::slice::from_ref(script), Patience::ALL) {
        let (short, difference) = shrink::shrunk(script, alone, shrink::LIMITS);
        told(&short, &difference)
    } else {
        let first = with_those_before.first().map_or(0, |script| script.seed);
        format!(
            "seed {}, only after those from {first} on, or not always: {}\n{script}",
            script.seed, difference.what
        )
    }
}

fn told(script: &Script, difference: &Difference) -> String {
    format!("seed {}: {}\n{script}", script.seed, difference.what)
}
