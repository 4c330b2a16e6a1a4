//! The C programs of this folder, compiled when a test first needs one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use nvshare_testbed::Artifacts;
use tempfile::TempDir;

/// Where cargo keeps what tests make, and which of them were compiled by this process.
static BUILT: LazyLock<(PathBuf, Mutex<BTreeSet<String>>)> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cases");
    std::fs::create_dir_all(&directory).expect("a directory for programs");
    (directory, Mutex::new(BTreeSet::new()))
});

/// The directory that holds them.
pub(crate) fn directory() -> &'static Path {
    &BUILT.0
}

/// The program made of `NAME.c`.
pub(crate) fn program(name: &str) -> PathBuf {
    match name {
        // Knows nothing of the driver, as far as the linker is concerned.
        "weak" => compile(name, name, &["-fPIE"], false),
        // Nobody else holds the driver.
        "reopened" => compile(name, name, &[], false),
        "dlnames" => compile(name, name, &["-rdynamic"], false),
        _ => compile(name, name, &[], true),
    }
}

/// A library made of the part of `NAME.c` that `define` chooses.
pub(crate) fn library(name: &str, define: &str) {
    compile(name, &format!("lib{name}.so"), &["-shared", "-fPIC", &format!("-D{define}")], true);
}

fn compile(source: &str, into: &str, flags: &[&str], linked: bool) -> PathBuf {
    let (directory, done) = &*BUILT;
    let path = directory.join(into);
    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
    if !done.insert(into.to_owned()) {
        return path;
    }
    // Over a rename: a test of another process may be running the one of before.
    let fresh = TempDir::new_in(directory).expect("a temporary directory");
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/programs");
    let mut command = Command::new("cc");
    command.args(["-O1", "-Wall", "-o"]).arg(fresh.path().join(into)).args(flags);
    command.arg(programs.join(format!("{source}.c")));
    if linked {
        command.arg("-L").arg(Artifacts::find().directory());
        command.args(["-Wl,--no-as-needed", "-lcuda", "-Wl,--allow-shlib-undefined"]);
    }
    let output = command.args(["-lpthread", "-ldl"]).output().expect("a C compiler called `cc`");
    assert!(output.status.success(), "{source}.c: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(fresh.path().join(into), &path).expect("a compiled program is put in its place");
    path
}
