//! The library is loaded into every process of every pod, most of which never use CUDA: what the loader has to do there is
//! done here.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    let usual = env::var_os("RUSTC_LINKER").is_none();
    // The table of hooks names them all: by address, not by 300 names to look up. Zig, which links releases, knows only the
    // form that makes the loader look up all other names here first as well.
    let symbolic = if usual { "-Bsymbolic-functions" } else { "-Bsymbolic" };
    println!("cargo:rustc-cdylib-link-arg=-Wl,{symbolic}");
    if usual {
        link_unwinder();
    }
}

/// Takes the unwinder in, where the C compiler that links has it as an archive: one library less to find and map. Zig takes
/// its own in; with another C library it is found as it is for every program.
fn link_unwinder() {
    let gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    if !gnu || env::var("HOST").ok() != env::var("TARGET").ok() {
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
