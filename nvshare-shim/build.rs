//! The library is loaded into every process of every pod, most of which never use CUDA: how much the loader has to do there
//! is decided here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    // The table of hooks names them all: by address, not by 300 names to look up. The second form, for linkers that do not
    // know the first, makes the loader look up all other names here first as well.
    if !link_with("-Bsymbolic-functions") {
        link_with("-Bsymbolic");
    }
    // One mapping less: what is only read lies with the code.
    link_with("--no-rosegment");
    link_unwinder();
    // A sanitizer looks names up before it can bear code of ours: its tests link the library without its `dlsym`.
    println!("cargo:rustc-check-cfg=cfg(sanitized)");
    if env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("-Zsanitizer=")) {
        println!("cargo:rustc-cfg=sanitized");
    }
}

/// Gives the linker a flag, if it knows it.
fn link_with(flag: &str) -> bool {
    let known = links(flag);
    if known {
        println!("cargo:rustc-cdylib-link-arg=-Wl,{flag}");
    }
    known
}

/// Whether the linker that will be used knows the flag: it links an empty library with it.
fn links(flag: &str) -> bool {
    let (Some(out), Some(rustc), Ok(target)) =
        (env::var_os("OUT_DIR"), env::var_os("RUSTC"), env::var("TARGET"))
    else {
        return false;
    };
    let source = PathBuf::from(&out).join("empty.rs");
    if fs::write(&source, "").is_err() {
        return false;
    }
    let mut rustc = Command::new(rustc);
    rustc.arg(&source).args(["--crate-type", "cdylib", "--target", &target, "--out-dir"]).arg(&out);
    rustc.arg("-C").arg(format!("link-arg=-Wl,{flag}"));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    if let Ok(flags) = env::var("CARGO_ENCODED_RUSTFLAGS") {
        rustc.args(flags.split('\x1f').filter(|flag| !flag.is_empty()));
    }
    rustc.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Takes the unwinder in, where the C compiler that links has it as an archive: one library less to find and map. Zig takes
/// its own in; with another C library it is found as it is for every program.
fn link_unwinder() {
    let gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    let native = env::var("HOST").ok() == env::var("TARGET").ok();
    if !gnu || !native || env::var_os("RUSTC_LINKER").is_some() {
        return;
    }
    let Ok(answer) = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output() else { return };
    let archive = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    // Without it the answer is the bare name.
    let Some(directory) = Path::new(&archive).parent().filter(|_| fs::exists(&archive).unwrap_or(false))
    else {
        return;
    };
    println!("cargo:rustc-link-search=native={}", directory.display());
    println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
}
