//! `cargo xtask setup`: finds, or installs, what builds the eBPF programs. They need a Rust compiler with the sources
//! of `core` (no tool chain carries `core` for BPF) and `bpf-linker`, built for the same release of LLVM.
//!
//! What is there is used. Otherwise: as root on Debian and its like the distribution's compiler and LLVM by apt, they
//! match; elsewhere a rustup nightly of a fixed date, if LLVM's development files are there for the linker. The linker
//! goes to `target/tools`. Nothing else is changed, and where nothing can be done the commands to run are named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{root, run as run_command};

/// What builds the eBPF programs.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler; its sysroot holds the sources of `core`.
    pub(crate) rustc: PathBuf,
    /// The cargo that comes with it, or the one that runs this.
    pub(crate) cargo: PathBuf,
    /// Where `bpf-linker` lies.
    pub(crate) linker_directory: PathBuf,
}

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
/// A nightly whose LLVM is [`LLVM`].
const NIGHTLY: &str = "nightly-2026-05-20";
/// The release of LLVM that is installed where none is there.
const LLVM: u32 = 22;
/// The releases that `bpf-linker` can be built for.
const LINKABLE: std::ops::RangeInclusive<u32> = 21..=23;

/// A compiler with the sources of `core`.
struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    llvm: u32,
}

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<()> {
    let tools = toolchain()?;
    eprintln!(
        "setup: eBPF compiler {}, linker in {}",
        tools.rustc.display(),
        tools.linker_directory.display()
    );
    Ok(())
}

/// The tool chain, if it is there.
pub(crate) fn ready() -> Option<Toolchain> {
    compilers().iter().find_map(|compiler| complete(compiler).ok().flatten())
}

/// The tool chain, installed if need be. Quick when it is there.
pub(crate) fn toolchain() -> Result<Toolchain> {
    if let Some(found) = ready() {
        return Ok(found);
    }
    let mut tried = Vec::new();
    // A compiler without its linker: only the linker has to be built.
    for compiler in compilers() {
        match build_linker(&compiler) {
            Ok(()) => {
                return complete(&compiler)?.context("bpf-linker was built but is not where it belongs");
            }
            Err(error) => tried.push(format!("{}: {error:#}", compiler.rustc.display())),
        }
    }
    for (way, install) in [("apt", by_apt as fn() -> Result<()>), ("rustup", by_rustup)] {
        if let Err(error) = install() {
            tried.push(format!("{way}: {error:#}"));
            continue;
        }
        for compiler in compilers() {
            match build_linker(&compiler).and_then(|()| complete(&compiler)) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => tried.push(format!("{}: {error:#}", compiler.rustc.display())),
            }
        }
    }
    bail!(
        "cannot build the eBPF programs: no Rust compiler with the sources of `core` and a matching bpf-linker.\n\
         Tried:\n  {}\nEither of these helps:\n  \
         - Debian, as root: apt-get install rustc-web rust-web-src llvm-{LLVM}-dev clang-{LLVM}\n  \
         - elsewhere: rustup toolchain install {NIGHTLY} --profile minimal --component rust-src, with the development \
         files of LLVM {LLVM} (`llvm-config-{LLVM}` in PATH) or a bpf-linker built for it in PATH\n\
         then run `cargo xtask setup` again.",
        tried.join("\n  ")
    )
}

/// Every compiler here that has the sources of `core`.
fn compilers() -> Vec<Compiler> {
    let own_cargo = PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let mut candidates = vec![(PathBuf::from("/usr/bin/rustc"), own_cargo.clone())];
    for name in [NIGHTLY, "nightly"] {
        let which = |program| output(Command::new("rustup").args(["which", "--toolchain", name, program]));
        if let (Ok(rustc), Ok(cargo)) = (which("rustc"), which("cargo")) {
            candidates.push((rustc.trim().into(), cargo.trim().into()));
        }
    }
    if let Ok(sysroot) = output(Command::new("rustc").args(["--print", "sysroot"])) {
        candidates.push((Path::new(sysroot.trim()).join("bin/rustc"), own_cargo));
    }
    candidates.into_iter().filter_map(|(rustc, cargo)| compiler(rustc, cargo)).collect()
}

fn compiler(rustc: PathBuf, cargo: PathBuf) -> Option<Compiler> {
    let ask = |argument: &[&str]| output(Command::new(&rustc).args(argument)).ok();
    let sysroot = ask(&["--print", "sysroot"])?;
    let sources = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    let version = ask(&["-vV"])?;
    let release = version.lines().find_map(|line| line.strip_prefix("release: 1."))?;
    // The edition and the layout of `core` that the programs need.
    let minor: u32 = release.split('.').next()?.parse().ok()?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    let llvm = llvm.split('.').next()?.parse().ok()?;
    (sources.is_file() && minor >= 90).then_some(Compiler { rustc, cargo, llvm })
}

/// The tool chain around `compiler`, if its linker is there.
fn complete(compiler: &Compiler) -> Result<Option<Toolchain>> {
    let found = |linker_directory: PathBuf| {
        Ok(Some(Toolchain { rustc: compiler.rustc.clone(), cargo: compiler.cargo.clone(), linker_directory }))
    };
    let ours = tools().join("bin");
    if ours.join(LINKER).is_file() {
        // Built by us: for the release that is noted beside it. One that somebody else put there is taken on trust.
        let noted = fs::read_to_string(note()).ok().and_then(|text| text.trim().parse::<u32>().ok());
        if noted.is_none_or(|llvm| llvm >= compiler.llvm) {
            return found(ours);
        }
        return Ok(None);
    }
    // In PATH: it does not tell what it was built for, so the newest releases only are trusted to know our compiler.
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).find(|directory| directory.join(LINKER).is_file()) {
        Some(directory) if compiler.llvm <= *LINKABLE.end() => found(directory),
        _ => Ok(None),
    }
}

/// Builds the linker for the compiler's LLVM into `target/tools`.
fn build_linker(compiler: &Compiler) -> Result<()> {
    if complete(compiler)?.is_some() {
        return Ok(());
    }
    let llvm = compiler.llvm;
    if !LINKABLE.contains(&llvm) {
        bail!("its LLVM {llvm} is none that bpf-linker {LINKER_VERSION} can be built for ({LINKABLE:?})");
    }
    let prefix = llvm_prefix(llvm).with_context(|| format!("no development files of LLVM {llvm}"))?;
    eprintln!("setup: building bpf-linker {LINKER_VERSION} for LLVM {llvm} into {}", tools().display());
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", LINKER, "--version", LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(tools())
        .env("LLVM_PREFIX", prefix)
        .env("CARGO_TARGET_DIR", tools().join("build"));
    run_command(without_cargo(&mut command))?;
    // Hundreds of megabytes that nobody needs again.
    let _ = fs::remove_dir_all(tools().join("build"));
    fs::write(note(), llvm.to_string()).with_context(|| format!("cannot write {}", note().display()))?;
    Ok(())
}

/// Where LLVM of this release is installed with its development files.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    for name in [format!("llvm-config-{llvm}"), format!("llvm-config{llvm}"), "llvm-config".to_owned()] {
        let Ok(answer) = output(Command::new(&name).args(["--version", "--prefix"])) else { continue };
        let (version, prefix) = answer.trim().split_once('\n')?;
        if version.split('.').next() == Some(&llvm.to_string()) {
            return Some(PathBuf::from(prefix));
        }
    }
    None
}

fn by_apt() -> Result<()> {
    let user = output(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        bail!("not root");
    }
    let packages =
        ["rustc-web".to_owned(), "rust-web-src".into(), format!("llvm-{LLVM}-dev"), format!("clang-{LLVM}")];
    eprintln!("setup: installing {} by apt-get", packages.join(" "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
        // What it says belongs to the set-up, not to the output of the task that asked for it.
        run_command(command.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr()))
    };
    apt(&["update"])?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages.iter().map(String::as_str));
    apt(&install)
}

fn by_rustup() -> Result<()> {
    eprintln!("setup: installing {NIGHTLY} with rust-src by rustup");
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"]);
    run_command(without_cargo(command.stdout(std::io::stderr())))
}

/// Where tools are installed.
fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Holds the release of LLVM the linker was built for.
fn note() -> PathBuf {
    tools().join("bpf-linker.llvm")
}

/// Takes away what the cargo around us set for its own children.
pub(crate) fn without_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("CARGO_") && text != "CARGO_HOME")
            || ["RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"]
                .contains(&&*text)
        {
            command.env_remove(&name);
        }
    }
    command
}

/// What a program prints on its standard output, if it succeeds.
fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?} failed ({})", done.status);
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
