//! The driver's library, as any process of the node may have put it there, and the code of its functions; what a module
//! of the simulator is made of.

use std::fs::File;
use std::path::Path;

use nvshare_agent::observer::{Library, choose_site};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::pwrite;

#[path = "../../../nvshare-sim/src/ptx.rs"]
mod ptx;

/// A file that is called libcuda. Whatever is in it, each probe lies within the file.
pub(crate) fn library(bytes: &[u8]) {
    let file = File::from(memfd_create("library", MemfdFlags::empty()).expect("a memfd"));
    let written = pwrite(&file, bytes, 0).expect("a file is written");
    assert_eq!(written, bytes.len());
    let identity = Library::identify(&file).expect("a file has an identity");
    if let Ok(library) = Library::read(Path::new("/fuzz/libcuda.so.1"), file, identity) {
        for point in &library.points {
            assert!(point.offset < bytes.len() as u64, "a probe of {} behind the file", point.symbol);
        }
    }
}

/// A module's text, as the simulator reads it.
pub(crate) fn ptx(text: &[u8]) {
    for entry in ptx::parse(&String::from_utf8_lossy(text)).unwrap_or_default() {
        assert!(!entry.name.is_empty());
        assert!(entry.parameters.iter().all(|parameter| parameter.offset + parameter.size < 1 << 16));
    }
}

/// Kernels with parameters of all kinds.
pub(crate) fn texts() -> Vec<Vec<u8>> {
    let text = ".version 7.0 // a remark\n.target sm_70\n.address_size 64\n\
        .visible .entry one(.param .u64 a, .param .align 8 .b8 b[24], .param .u64 .ptr .global .align 16 c) { ret; }\n\
        /* another */ .visible .entry two() { ret; }\n";
    vec![text.as_bytes().to_vec()]
}

/// The beginning of a function. A site lies within what was looked at.
pub(crate) fn instructions(bytes: &[u8]) {
    let (address, code) = match bytes.split_first_chunk::<8>() {
        Some((address, code)) => (u64::from_le_bytes(*address), code),
        None => (0, bytes),
    };
    if let Some(site) = choose_site(code, address) {
        assert!((site.offset as usize) < code.len(), "a site behind the code");
    }
}

/// A library with two functions of the driver, as small as one can be.
pub(crate) fn libraries() -> Vec<Vec<u8>> {
    const CODE: u64 = 0x400;
    const STRINGS: u64 = 0x300;
    const SYMBOLS: u64 = 0x200;
    let names = b"\0cuMemAlloc_v2\0cuLaunchKernel\0";
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let mut file = vec![0_u8; 0x600];
    let mut put = |at: u64, bytes: &[u8]| file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &3_u16.to_le_bytes());
    put(18, &machine.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(32, &64_u64.to_le_bytes()); // segments
    put(40, &0x100_u64.to_le_bytes()); // sections
    for (at, value) in [(52, 64_u16), (54, 56), (56, 1), (58, 64), (60, 3), (62, 2)] {
        put(at, &value.to_le_bytes());
    }
    put(64, &1_u32.to_le_bytes()); // PT_LOAD
    put(68, &5_u32.to_le_bytes()); // readable, executable
    put(96, &0x600_u64.to_le_bytes());
    put(104, &0x600_u64.to_le_bytes());
    let section = |kind: u32, at: u64, bytes: u64, link: u32, entry: u64| {
        let mut section = vec![0; 64];
        section[4..8].copy_from_slice(&kind.to_le_bytes());
        section[24..32].copy_from_slice(&at.to_le_bytes());
        section[32..40].copy_from_slice(&bytes.to_le_bytes());
        section[40..44].copy_from_slice(&link.to_le_bytes());
        section[56..64].copy_from_slice(&entry.to_le_bytes());
        section
    };
    put(0x140, &section(11, SYMBOLS, 72, 2, 24)); // SHT_DYNSYM
    put(0x180, &section(3, STRINGS, names.len() as u64, 0, 0)); // SHT_STRTAB
    for (number, name) in [(1_u64, 1_u32), (2, 15)] {
        let at = SYMBOLS + 24 * number;
        put(at, &name.to_le_bytes());
        put(at + 4, &[0x12, 0, 1, 0]); // a global function of section 1
        put(at + 8, &(CODE + 0x80 * (number - 1)).to_le_bytes());
        put(at + 16, &0x40_u64.to_le_bytes());
    }
    put(STRINGS, names);
    for function in [CODE, CODE + 0x80] {
        put(function, PROLOGUE);
    }
    let whole = file.clone();
    file.truncate(0x420);
    vec![whole, file]
}

/// What drivers of the 580 series begin a function with.
const PROLOGUE: &[u8] = b"\x55\x48\x89\xe5\x41\x54\x48\x83\xec\x08\x81\x3d\x3c\xa4\x8a\x05\x00\xba\x1c\x32\x0f\x84\x96\x00\x00\x00\xc3";

/// Beginnings of functions at some address.
pub(crate) fn instruction_seeds() -> Vec<Vec<u8>> {
    let at = |code: &[u8]| [&0x32_b900_u64.to_le_bytes()[..], code].concat();
    vec![at(PROLOGUE), at(b"\xf3\x0f\x1e\xfa\x48\x83\xec\x18\x55\xeb\xfd\xc3"), at(b"\xe9\x10\x00\x00\x00")]
}
