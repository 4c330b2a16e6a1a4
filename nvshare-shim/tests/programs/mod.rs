//! Compiles the C programs of this folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `source` of this folder to the file `into`.
pub(crate) fn compile(source: &str, into: PathBuf, arguments: &[&OsStr]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source);
    let output = Command::new("cc")
        .args(["-O1", "-w", "-pthread", "-o"])
        .arg(&into)
        .arg(source)
        .args(arguments)
        .arg("-ldl")
        .output()
        .expect("a C compiler called `cc` is needed for these tests");
    assert!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
    into
}

/// A shared library that goes by the name of the driver.
pub(crate) fn compile_driver(source: &str, directory: &Path) -> PathBuf {
    let arguments = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"].map(OsStr::new);
    compile(source, directory.join("libcuda.so.1"), &arguments)
}
