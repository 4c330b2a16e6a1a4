//! `cargo xtask build`: everything that runs, in one directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;
use nvshare_testbed::Artifacts;

use crate::command::{cargo, root, run as run_command};
use crate::{ebpf, setup};

/// Everything but xtask itself, which is running.
pub(crate) const PACKAGES: [&str; 5] =
    ["nvshare-sim", "nvshare-sim-nvml", "nvshare-shim", "nvshare-agent", "nvshare-workload"];

#[derive(Args)]
pub(crate) struct Options {
    /// With optimisation.
    #[arg(long)]
    pub(crate) release: bool,
}

/// What there is to run: built now, or, where `NVSHARE_ARTIFACTS` names a directory, what lies there. So a built xtask
/// and its artifacts run on machines without sources.
pub(crate) fn artifacts(release: bool) -> Result<Artifacts> {
    match std::env::var_os("NVSHARE_ARTIFACTS") {
        Some(directory) => Ok(Artifacts::at(directory)),
        None => run(&Options { release }),
    }
}

/// What the demo needs. Without the eBPF programs where what builds them is not there yet: to build that takes longer than the
/// demo, which then shows no calls seen by uprobes.
pub(crate) fn for_demo() -> Result<Artifacts> {
    if std::env::var_os("NVSHARE_ARTIFACTS").is_some() || setup::ready().is_some() {
        return artifacts(false);
    }
    eprintln!("demo: building all but the eBPF programs; the first time this takes some minutes");
    let artifacts = only(&PACKAGES)?;
    eprintln!(
        "demo: no calls are seen by uprobes. `cargo xtask setup` (some minutes, once) brings what builds their programs"
    );
    Ok(artifacts)
}

/// Builds and says where.
pub(crate) fn run(options: &Options) -> Result<Artifacts> {
    let mut command = cargo();
    command.arg("build");
    for package in PACKAGES.iter().filter(|package| !options.release || **package != "nvshare-shim") {
        command.args(["--package", package]);
    }
    if options.release {
        command.arg("--release");
        run_command(shim(&mut cargo()))?;
    }
    run_command(&mut command)?;
    let artifacts = directory(options.release);
    ebpf::build(&artifacts)?;
    eprintln!("built into {}", artifacts.display());
    Ok(Artifacts::at(artifacts))
}

/// Builds some of [`PACKAGES`] for tests that need no more, and no eBPF programs.
pub(crate) fn only(packages: &[&str]) -> Result<Artifacts> {
    if !packages.is_empty() {
        run_command(cargo().arg("build").args(packages.iter().flat_map(|package| ["--package", package])))?;
    }
    Ok(Artifacts::at(directory(false)))
}

/// Makes `command` (cargo, or what stands in for it) build the library as it is released. It is loaded into every process of
/// every pod: smaller, it is there sooner. By itself, because what Rust programs link with as well is not optimised as a whole.
pub(crate) fn shim(command: &mut Command) -> &mut Command {
    command
        .args(["rustc", "--release", "--package", "nvshare-shim", "--lib", "--crate-type", "cdylib"])
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
}

fn directory(release: bool) -> PathBuf {
    target().join(if release { "release" } else { "debug" })
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}
