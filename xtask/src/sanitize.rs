//! `cargo xtask sanitize address|thread`: tests under a sanitizer, built apart (`target/sanitize-…`) with the compiler's
//! unstable flags.

use anyhow::Result;
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
    let (name, package) = match options.sanitizer {
        Sanitizer::Address => ("address", "nvshare-shim"),
        Sanitizer::Thread => ("thread", "nvshare-sim"),
    };
    let mut command = cargo();
    command
        .args(["test", "--package", package, "--target", TARGET])
        .env("CARGO_TARGET_DIR", build::target().join(format!("sanitize-{name}")))
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Zsanitizer={name}"))
        .env("RUSTC_BOOTSTRAP", "1")
        .args(&options.arguments);
    run_command(&mut command)
}
