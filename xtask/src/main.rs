//! `cargo xtask`: sets up the tool chain, builds, runs, tests, measures, checks, releases.

mod agent;
mod bench;
mod build;
mod ci;
mod command;
mod demo;
mod deploy;
mod dist;
#[cfg(test)]
mod documents;
mod ebpf;
mod fuzz;
mod python;
mod sanitize;
mod setup;
mod test;

use std::process::ExitCode;

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
    /// Find or install what builds the eBPF programs; the other tasks do it when they need it.
    Setup,
    /// Build, then run the agent or the demo.
    #[command(subcommand)]
    Run(Run),
    /// Build what the tests need, then run all tests.
    Test(test::Options),
    /// Run the benchmarks and compare them with their budgets and with an earlier run.
    Bench(bench::Options),
    /// Throw bytes at everything that reads bytes of others.
    Fuzz(fuzz::Options),
    /// Run tests under AddressSanitizer (the library) or ThreadSanitizer (the simulator).
    Sanitize(sanitize::Options),
    /// Print what Kubernetes needs to run the agent on every GPU node.
    #[command(subcommand)]
    Deploy(deploy::Deploy),
    /// Build what is released, for glibc 2.17 and newer, into target/dist.
    Dist,
    /// Everything that must hold before a change is merged.
    Ci(ci::Options),
}

#[derive(Subcommand)]
enum Run {
    /// The agent, on this machine's GPU or on a simulated card.
    Agent(agent::Options),
    /// Four processes that together want three times the card, with managed memory and under nvshare.
    Demo(demo::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Build(options) => build::run(&options).map(drop),
        Task::Run(Run::Agent(options)) => agent::run(&options),
        Task::Run(Run::Demo(options)) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Sanitize(options) => sanitize::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Deploy(deploy) => deploy::run(&deploy),
        Task::Dist => dist::run(),
        Task::Ci(options) => ci::run(&options),
        Task::Setup => setup::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
