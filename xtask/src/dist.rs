//! `cargo xtask dist`: what is released, in one directory with checksums. Agent and shim run with glibc 2.17 and newer:
//! the shim is loaded into every process of every pod, whatever its image is made of.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::elf::{FileHeader64, VERSYM_VERSION};
use object::read::elf::{ElfFile64, FileHeader, Sym};
use object::{Endianness, SymbolIndex};

use crate::build::{self, target};
use crate::command::{root, run as run_command};
use crate::{ebpf, python};

/// The oldest glibc that a pod may have, that of CentOS 7: major and minor version.
const FLOOR: (u32, u32) = (2, 17);
/// Zig brings the link-time libraries of every glibc, cargo-zigbuild puts it in the linker's place.
const TOOLS: [&str; 2] = ["ziglang==0.17.1", "cargo-zigbuild==0.24.1"];
/// What else belongs to a release, by its place in the repository.
const TEXTS: [&str; 4] =
    ["deploy/systemd/nvshare-agent.service", "LICENSE-APACHE", "LICENSE-GPL", "LICENSE-MIT"];

/// Builds everything and says where it is.
pub(crate) fn run() -> Result<()> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    build(&triple)?;
    let built = target().join(&triple).join("release");
    let release = root().join("target/dist").join(format!("nvshare-{}", version()));
    // Whatever an earlier one left is not part of this one.
    if release.exists() {
        fs::remove_dir_all(&release).with_context(|| format!("cannot remove {}", release.display()))?;
    }
    fs::create_dir_all(&release).with_context(|| format!("cannot make {}", release.display()))?;
    let mut files = Vec::new();
    for name in ["nvshare-agent", "libnvshare.so"] {
        check_floor(&built.join(name))?;
        files.push(put(&built.join(name), &release)?);
    }
    ensure!(ebpf::build(&release)?.is_some(), "a release needs the eBPF programs: see above what is missing");
    files.push(ebpf::OBJECT.to_owned());
    for text in TEXTS {
        files.push(put(&root().join(text), &release)?);
    }
    checksums(&release, &files)?;
    eprintln!("released into {}", release.display());
    println!("{}", release.display());
    Ok(())
}

/// The release that this is.
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Agent and shim, against the oldest glibc.
fn build(triple: &str) -> Result<()> {
    let bin = python::programs("zigbuild", &TOOLS)?;
    let mut path = vec![bin.clone()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let caches = root().join("target/tools");
    let path = std::env::join_paths(path)?;
    let run = |command: &mut Command| {
        let command = command
            .current_dir(root())
            .args(["--target", &format!("{triple}.{}.{}", FLOOR.0, FLOOR.1)])
            .env("CARGO_TARGET_DIR", target())
            // Names of functions stay, for traces; the rest would be four fifths of the files.
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
            .env("CARGO_ZIGBUILD_CACHE_DIR", caches.join("zigbuild-cache"))
            .env("ZIG_GLOBAL_CACHE_DIR", caches.join("zig-cache"))
            .env("PATH", &path);
        run_command(command)
    };
    let zigbuild = || Command::new(bin.join("cargo-zigbuild"));
    run(build::shim(&mut zigbuild()))?;
    run(zigbuild().args(["zigbuild", "--release", "--package", "nvshare-agent"]))
}

/// Copies a file, under its own name, which it answers.
fn put(from: &Path, into: &Path) -> Result<String> {
    let name = from.file_name().context("a file has a name")?;
    fs::copy(from, into.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// `SHA256SUMS`, as `sha256sum --check` reads it.
fn checksums(release: &Path, files: &[String]) -> Result<()> {
    let output = Command::new("sha256sum").current_dir(release).arg("--").args(files).output();
    let output = output.context("cannot start sha256sum (of coreutils)")?;
    ensure!(output.status.success(), "sha256sum failed: {}", String::from_utf8_lossy(&output.stderr));
    fs::write(release.join("SHA256SUMS"), output.stdout)?;
    Ok(())
}

/// An error where the file needs a newer glibc than [`FLOOR`].
fn check_floor(path: &Path) -> Result<()> {
    let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let above = above_floor(&data).with_context(|| format!("cannot read {}", path.display()))?;
    if above.is_empty() {
        return Ok(());
    }
    bail!("{} needs a newer glibc than {}.{}: {}", path.display(), FLOOR.0, FLOOR.1, above.join(", "))
}

/// The symbols that a file wants from a newer glibc than [`FLOOR`], with their versions.
fn above_floor(data: &[u8]) -> Result<Vec<String>> {
    let elf = ElfFile64::<Endianness>::parse(data)?;
    let endian = elf.endian();
    let header: &FileHeader64<Endianness> = elf.elf_header();
    let sections = header.sections(endian, data)?;
    let versions = sections.versions(endian, data)?.context("its symbols have no versions")?;
    let symbols = sections.symbols(endian, data, object::elf::SHT_DYNSYM)?;
    let mut above = Vec::new();
    for (index, symbol) in symbols.enumerate() {
        if !symbol.is_undefined(endian) || index == SymbolIndex(0) {
            continue;
        }
        let version = versions.version_index(endian, index).0 & VERSYM_VERSION;
        let Ok(Some(version)) = versions.version(object::read::elf::VersionIndex(version)) else { continue };
        let version = String::from_utf8_lossy(version.name()).into_owned();
        if version.strip_prefix("GLIBC_").is_some_and(|version| !within_floor(version)) {
            let name = String::from_utf8_lossy(symbol.name(endian, symbols.strings())?).into_owned();
            above.push(format!("{name}@{version}"));
        }
    }
    Ok(above)
}

/// `2.2.5` and `2.17` are; `2.18` is not, nor is `PRIVATE`, which belongs to one glibc only.
fn within_floor(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) <= FLOOR,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for within in ["2.2.5", "2.3", "2.9", "2.17"] {
            assert!(within_floor(within), "{within}");
        }
        for above in ["2.18", "2.34", "3.0", "PRIVATE", ""] {
            assert!(!within_floor(above), "{above}");
        }
    }

    #[test]
    fn a_program_built_for_this_machine_is_found_to_need_its_glibc() {
        // Rust's standard library finds newer functions by weak symbols, but whatever links here is newer than 2012's.
        let path = std::env::current_exe().unwrap();
        let above = above_floor(&fs::read(&path).unwrap()).unwrap();
        assert!(above.iter().any(|symbol| symbol.contains("@GLIBC_2.")), "{above:?}");
        let error = check_floor(&path).unwrap_err().to_string();
        assert!(error.contains("newer glibc than 2.17") && error.contains(&above[0]), "{error}");
    }
}
