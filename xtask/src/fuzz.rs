//! `cargo xtask fuzz`: libFuzzer on everything that reads bytes of others (`xtask/fuzz`), built with
//! the stable compiler. Overflows and debug assertions are checked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::build;
use crate::command::{cargo, root, run as run_command};

#[derive(Args)]
pub(crate) struct Options {
    /// Which targets; all of them if none is named.
    targets: Vec<String>,
    /// How long each target is fuzzed.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Keep what reached new code, minimized, in the corpus of the repository.
    #[arg(long)]
    keep: bool,
}

/// What libFuzzer counts: edges, and both sides of comparisons. In our own crates only: whatever else is linked is what the
/// other tasks have built already.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// One input may take so many seconds.
const PATIENCE: u32 = 20;
/// So many inputs of each target are kept in the repository.
const MOST_KEPT: usize = 40;
/// Larger inputs say nothing new, and the corpus stays small.
const LONGEST: u32 = 4096;

/// Builds the fuzzer and runs it on each target; an error names the input that was not survived.
pub(crate) fn run(options: &Options) -> Result<()> {
    let fuzzer = build()?;
    let all = targets()?;
    for name in &options.targets {
        ensure!(all.contains(name), "there is no target `{name}`; there are {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    let mut failed = Vec::new();
    for name in chosen {
        eprintln!("== {name}: {} s", options.seconds);
        if let Err(error) = fuzz(&fuzzer, name, options) {
            eprintln!("== {name}: {error:#}");
            failed.push(name.as_str());
        }
    }
    ensure!(
        failed.is_empty(),
        "not survived: see the files in {} of {}",
        found().display(),
        failed.join(", ")
    );
    Ok(())
}

fn build() -> Result<PathBuf> {
    // Cargo asks it to compile the workspace's own crates, and keeps these apart from those built without it.
    let wrapper = directory().join("rustc");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *\"--crate-name build_script\"*) exec \"$@\";; esac\nexec \"$@\" {COVERAGE}\n"
    );
    fs::create_dir_all(directory()).with_context(|| format!("cannot create {}", directory().display()))?;
    fs::write(&wrapper, script).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", wrapper.display()))?;
    let mut command = cargo();
    command
        .args(["build", "--package", "nvshare-fuzz", "--features", "libfuzzer", "--bin", "nvshare-fuzz"])
        .env("RUSTC_WORKSPACE_WRAPPER", &wrapper);
    run_command(&mut command)?;
    // Not in the way of the tests' build of the same package.
    let fuzzer = directory().join("nvshare-fuzz");
    fs::copy(build::target().join("debug/nvshare-fuzz"), &fuzzer)
        .with_context(|| format!("cannot copy the fuzzer to {}", fuzzer.display()))?;
    Ok(fuzzer)
}

/// The names of all targets, as `xtask/fuzz/src/lib.rs` has them.
fn targets() -> Result<Vec<String>> {
    let table = source().join("src/lib.rs");
    let text = fs::read_to_string(&table).with_context(|| format!("cannot read {}", table.display()))?;
    let names =
        text.lines().filter_map(|line| line.trim().strip_prefix("Target { name: \"")?.split('"').next());
    Ok(names.map(str::to_owned).collect())
}

fn fuzz(fuzzer: &Path, name: &str, options: &Options) -> Result<()> {
    let [work, seeds] = ["work", "seeds"].map(|kind| directory().join(kind).join(name));
    let corpus = source().join("corpus").join(name);
    for path in [&work, &seeds, &corpus, &found()] {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let libfuzzer = || {
        let mut command = Command::new(fuzzer);
        command
            .env("NVSHARE_FUZZ_TARGET", name)
            .env("NVSHARE_FUZZ_SEEDS", &seeds)
            .arg(format!("-timeout={PATIENCE}"))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-artifact_prefix={}/{name}-", found().display()));
        command
    };
    run_command(
        libfuzzer()
            .arg(format!("-max_total_time={}", options.seconds))
            .args(["-print_final_stats=1", "-verbosity=1", "-rss_limit_mb=2048"])
            .args([&work, &seeds, &corpus]),
    )?;
    if options.keep {
        let control = directory().join(format!("{name}.control"));
        let _ = fs::remove_file(&control);
        let scratch = tempfile::tempdir_in(directory())?;
        run_command(
            libfuzzer()
                .arg("-merge=1")
                .arg(format!("-merge_control_file={}", control.display()))
                .arg(scratch.path())
                .args([&corpus, &seeds, &work]),
        )?;
        keep(&control, &corpus)?;
    }
    Ok(())
}

/// Replaces the corpus by the inputs that reached most, by libFuzzer's account of a merge: how many inputs there are, how many
/// of them were merged already, their names, and a line `COV NUMBER EDGE...` for each with the edges that it was the first
/// to reach.
fn keep(control: &Path, corpus: &Path) -> Result<()> {
    let text = fs::read_to_string(control).with_context(|| format!("cannot read {}", control.display()))?;
    let mut lines = text.lines();
    let count: usize =
        lines.next().unwrap_or_default().parse().context("a merge says how many inputs it has")?;
    let names: Vec<&str> = lines.by_ref().skip(1).take(count).collect();
    let mut first: Vec<(usize, &str)> = lines
        .filter_map(|line| {
            let mut words = line.strip_prefix("COV ")?.split_whitespace();
            let name = names.get(words.next()?.parse::<usize>().ok()?)?;
            Some((words.count(), *name)).filter(|(edges, _)| *edges > 0)
        })
        .collect();
    first.sort_by(|one, other| other.cmp(one));
    let inputs: Vec<Vec<u8>> =
        first.iter().take(MOST_KEPT).map(|(_, name)| fs::read(name)).collect::<Result<_, _>>()?;
    fs::remove_dir_all(corpus).with_context(|| format!("cannot replace {}", corpus.display()))?;
    fs::create_dir_all(corpus)?;
    for (number, input) in inputs.iter().enumerate() {
        let path = corpus.join(format!("{number:02}"));
        fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn source() -> PathBuf {
    root().join("xtask/fuzz")
}

fn directory() -> PathBuf {
    build::target().join("fuzz")
}

/// Where inputs lie that were not survived.
fn found() -> PathBuf {
    directory().join("found")
}
