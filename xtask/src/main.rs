//! `cargo xtask`: sets up the tool chain, builds, runs, tests, measures, checks.

mod build;
mod command;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything: agent, shim, simulator, workload, eBPF programs.
    Build(build::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Build(options) => build::run(&options).map(drop),
    }
}
