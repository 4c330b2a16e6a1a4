//! `cargo xtask run agent`: the agent in the foreground, and what to type to run something under it.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use nvshare_sim_card::Cards;

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
    let mut client = vec![("LD_PRELOAD", artifacts.shim())];
    let mut bytes = 768 << 20;
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
        let card = Cards::from_environment()?;
        agent.env("NVSHARE_SIM_DIR", card.directory());
        agent.arg("--uvm-tools").arg(card.directory().join("nvidia-uvm"));
        client.extend([
            ("LD_LIBRARY_PATH", libraries),
            ("NVSHARE_SOCKET", socket),
            ("NVSHARE_SIM_DIR", card.directory().to_owned()),
        ]);
        bytes = card.config().card_bytes / 4 * 3;
        eprintln!("no GPU is used: the card is simulated");
    }
    eprintln!(
        "run a program under the agent with:\n  {} --bytes {}M --seconds 60",
        typed(&client, &artifacts.workload()),
        bytes >> 20
    );
    Err(agent.args(&options.flags).exec()).with_context(|| format!("cannot start {agent:?}"))
}

/// What to type in any shell, wherever it is and whatever it has exported, to run `program` with these variables.
fn typed(variables: &[(&str, PathBuf)], program: &Path) -> String {
    let quoted = |path: &Path| {
        let text = path.display().to_string();
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
        if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    let variables = variables.iter().map(|(name, value)| format!("{name}={} ", quoted(value)));
    variables.collect::<String>() + &quoted(program)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_typed_does_the_same_in_any_shell() {
        let place = tempfile::TempDir::with_prefix("nvshare it's a place ").unwrap();
        let program = place.path().join("program");
        fs::write(&program, "#!/bin/sh\nprintf '%s|%s|%s' \"$ONE\" \"$OTHER\" \"$*\"\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let variables = [("ONE", place.path().to_owned()), ("OTHER", PathBuf::from("/a/plain.so.1"))];
        let line = format!("{} --bytes 96M", typed(&variables, &program));
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &line]).current_dir("/").env("ONE", "exported before");
        let said = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        assert_eq!(said, format!("{}|/a/plain.so.1|--bytes 96M", place.path().display()), "{line}");
    }
}
