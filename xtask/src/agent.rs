//! `cargo xtask run agent`: the agent in the foreground, and what to type to run something under it.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use nvshare_testbed::Artifacts;

use crate::build;

#[derive(Args)]
pub(crate) struct Options {
    /// Use a simulated card although there is a GPU.
    #[arg(long)]
    sim: bool,
    /// Flags for the agent, see `cargo xtask run agent -- --help`.
    #[arg(last = true)]
    flags: Vec<String>,
}

/// Whether this machine has a GPU with NVIDIA's driver.
pub(crate) fn has_gpu() -> bool {
    // The kernel module's list. Device files prove nothing: NVIDIA's library makes them wherever root loads it.
    std::fs::read_dir("/proc/driver/nvidia/gpus").is_ok_and(|mut cards| cards.next().is_some())
}

/// Builds the agent and becomes it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let artifacts = build::artifacts(false)?;
    let mut agent = Command::new(artifacts.agent());
    if let Some(object) = artifacts.ebpf() {
        agent.arg("--ebpf-object").arg(object);
    }
    let shim = artifacts.shim();
    let mut client = format!("LD_PRELOAD={} ", shim.display());
    if options.sim || !has_gpu() {
        let node = build::target().join("node");
        let (libraries, socket) = (node.join("lib"), node.join("run/agent.sock"));
        for directory in [&libraries, &node.join("run"), &node.join("admin")] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let libcuda = install(&artifacts.libcuda(), libraries.join("libcuda.so.1"))?;
        let nvml = install(&artifacts.nvml(), libraries.join("libnvidia-ml.so.1"))?;
        agent.arg("--socket").arg(&socket).arg("--admin-socket").arg(node.join("admin/admin.sock"));
        agent.arg("--nvml").arg(nvml).arg("--libcuda").arg(libcuda).env("LD_LIBRARY_PATH", &libraries);
        let card = nvshare_sim_card::config::directory(|name| std::env::var(name).ok());
        agent.arg("--uvm-tools").arg(card.join("nvidia-uvm"));
        client =
            format!("{client}LD_LIBRARY_PATH={} NVSHARE_SOCKET={} ", libraries.display(), socket.display());
        eprintln!("no GPU is used: the card is simulated");
    }
    eprintln!("run a program under the agent with:\n  {client}{} --bytes 768M", workload(&artifacts));
    Err(agent.args(&options.flags).exec()).with_context(|| format!("cannot start {agent:?}"))
}

fn workload(artifacts: &Artifacts) -> String {
    artifacts.workload().display().to_string()
}

/// Puts a library where programs find it under its usual names.
fn install(from: &Path, to: PathBuf) -> Result<PathBuf> {
    let _ = fs::remove_file(&to);
    fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    let plain = to.with_extension("");
    if !plain.exists() {
        symlink(to.file_name().expect("a file"), &plain)?;
    }
    Ok(to)
}
