//! `cargo xtask test`: everything that the tests need is built first, so that none of them tests yesterday's shim.

use anyhow::Result;
use clap::Args;

use crate::build;
use crate::command::{cargo, run as run_command};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Passed on to `cargo test --workspace`: filters, or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    let artifacts = build::run(&build::Options { release: false })?;
    run_command(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            .args(&options.arguments)
            .env("NVSHARE_ARTIFACTS", artifacts.directory()),
    )
}
