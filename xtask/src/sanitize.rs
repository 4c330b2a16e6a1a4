//! `cargo xtask sanitize address|thread`: tests under a sanitizer, built apart (`target/sanitize-…`) with the compiler's
//! unstable flags.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::build;
use crate::command::{cargo, run as run_command};

/// What is built for; named, so that build scripts and macros are built without the sanitizer.
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

#[derive(Args)]
pub(crate) struct Options {
    /// Which one.
    #[arg(value_enum)]
    sanitizer: Sanitizer,
    /// Passed on to `cargo test`: filters, or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sanitizer {
    /// Memory that is not ours, of the library.
    Address,
    /// Races, of the simulator.
    Thread,
}

/// Builds and tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    match options.sanitizer {
        Sanitizer::Address => address(&options.arguments),
        Sanitizer::Thread => thread(&options.arguments),
    }
}

/// These tests link the library, so that everything that it does in a process is seen. Others preload it into C programs,
/// where the sanitizer would have to be there first.
fn address(arguments: &[String]) -> Result<()> {
    let artifacts = build::run(&build::Options { release: false })?;
    run_command(
        under("address", "test", "nvshare-shim", &["-Zsanitizer=address"])
            // The library keeps what it has until the process ends; so does the simulator.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            // Beside its shadow memory.
            .env("NVSHARE_SIM_ADDRESSES", "17408G-32768G")
            .env("NVSHARE_ARTIFACTS", artifacts.directory())
            .args(["--no-fail-fast", "--lib", "--test", "drain", "--test", "swap"])
            .args(arguments),
    )
}

/// The simulator is a library that the tests open: it takes the sanitizer from them. The standard library is built along, for
/// what its locks do must be seen.
fn thread(arguments: &[String]) -> Result<()> {
    let flags = ["-Zsanitizer=thread", "-Clink-arg=-rdynamic"];
    let cargo = |what| -> Command {
        let mut command = under("thread", what, "nvshare-sim", &flags);
        command.args(["-Z", "build-std"]);
        command
    };
    // A program that writes into what a copy reads: it is the test's own race that would be reported.
    let separator = if arguments.iter().any(|argument| argument == "--") { None } else { Some("--") };
    let without = ["--skip", "pageable_memory_that_changes_while_a_copy_reads_it_is_a_violation"];
    // The tests open the library where they find it.
    run_command(&mut cargo("build"))
        .context("the sources of the standard library are needed: rustup component add rust-src")?;
    let built = directory("thread").join(TARGET).join("debug");
    run_command(
        cargo("test")
            .env("NVSHARE_ARTIFACTS", built)
            // Where it lets programs have memory.
            .env("NVSHARE_SIM_ADDRESSES", "64G-512G")
            .args(["--no-fail-fast"])
            .args(arguments)
            .args(separator)
            .args(without),
    )
}

fn directory(sanitizer: &str) -> PathBuf {
    build::target().join(format!("sanitize-{sanitizer}"))
}

fn under(sanitizer: &str, what: &str, package: &str, flags: &[&str]) -> Command {
    let mut command = cargo();
    command
        .args([what, "--package", package, "--target", TARGET])
        .env("CARGO_TARGET_DIR", directory(sanitizer))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC_BOOTSTRAP", "1");
    command
}
