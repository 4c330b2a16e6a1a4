//! The eBPF programs: built for their own target with their own tool chain, linted as ordinary Rust.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{cargo, root, run};
use crate::setup;

/// The name under which the agent looks for the programs, beside its executable.
pub(crate) const OBJECT: &str = "nvshare.bpf.o";
const TARGET: &str = "bpfel-unknown-none";

/// Builds the programs into `into`; `None`, with a loud line, where no tool chain can be had. Always optimised: the
/// kernel's verifier takes nothing else.
pub(crate) fn build(into: &Path) -> Result<Option<PathBuf>> {
    let tools = match setup::toolchain() {
        Ok(tools) => tools,
        Err(error) => {
            eprintln!("WARNING: built WITHOUT the eBPF programs; the agent will not observe.\n{error:#}");
            return Ok(None);
        }
    };
    let mut path = vec![tools.linker_directory.clone()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new(&tools.cargo);
    setup::without_cargo(&mut command)
        .current_dir(source())
        .args(["build", "--release", "--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", target())
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&["-Cdebuginfo=2", "-Clink-arg=--btf"])?)
        .env("PATH", std::env::join_paths(path)?)
        .env("RUSTC", &tools.rustc)
        .env("RUSTC_BOOTSTRAP", "1");
    run(&mut command)?;
    let built = target().join(TARGET).join("release/nvshare");
    let object = into.join(OBJECT);
    // Over a rename: a running agent may be reading the old one.
    let fresh = into.join(format!(".{OBJECT}.{}", std::process::id()));
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    fs::copy(&built, &fresh)
        .and_then(|_| fs::rename(&fresh, &object))
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(Some(object))
}

/// Formatting and clippy. No BPF tool chain is needed: the programs are checked as a program of this machine.
pub(crate) fn lint() -> Result<()> {
    run(cargo().current_dir(source()).args(["fmt", "--check"]))?;
    run(setup::without_cargo(cargo().current_dir(source()).args(["clippy", "--", "-D", "warnings"]))
        .env("CARGO_TARGET_DIR", target())
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&["-Cpanic=abort"])?)
        .env("RUSTC_BOOTSTRAP", "1"))
}

fn source() -> PathBuf {
    root().join("nvshare-ebpf")
}

fn target() -> PathBuf {
    root().join("target/ebpf")
}

/// The flags, with the machine's architecture: registers of the observed process have its names.
fn rustflags(flags: &[&str]) -> Result<OsString> {
    let architecture = std::env::consts::ARCH;
    if !["x86_64", "aarch64"].contains(&architecture) {
        bail!("the eBPF programs know no {architecture}: only x86_64 and aarch64");
    }
    let mut all = vec![format!("--cfg=bpf_target_arch=\"{architecture}\"")];
    all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    Ok(all.join("\x1f").into())
}
