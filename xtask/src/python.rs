//! Tools from PyPI, each set in a virtual environment of its own under `target/tools`: nothing is installed elsewhere.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::command::root;

/// The programs of a virtual environment with exactly these packages, made where it is not there. `packages` name their
/// versions.
pub(crate) fn programs(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let tools = root().join("target/tools");
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    // Tests run side by side.
    let lock = tools.join(format!("{name}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    lock.lock().context("cannot lock the Python environment")?;
    let (directory, wanted) = (tools.join(name), packages.join("\n"));
    let (bin, installed) = (directory.join("bin"), directory.join("installed"));
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(bin);
    }
    eprintln!("setup: installing {} into {}", packages.join(" "), directory.display());
    quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory))
        .context("no Python with `venv` (Debian: apt-get install python3-venv)")?;
    quiet(Command::new(bin.join("python")).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    fs::write(&installed, wanted)?;
    Ok(bin)
}

/// Runs a command whose output nobody reads unless it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
