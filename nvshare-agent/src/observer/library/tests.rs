//! Where a library's functions get their probes.

use super::*;

/// A library of this machine with nothing in it but a table of symbols of `bytes`.
fn with_symbols(bytes: u64) -> tempfile::NamedTempFile {
    let here = if cfg!(target_arch = "x86_64") { elf::EM_X86_64 } else { elf::EM_AARCH64 };
    let mut header = vec![0; 64];
    header[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    header[16..18].copy_from_slice(&3_u16.to_le_bytes());
    header[18..20].copy_from_slice(&here.to_le_bytes());
    header[20] = 1;
    header[40..48].copy_from_slice(&64_u64.to_le_bytes()); // where the sections are
    header[52..54].copy_from_slice(&64_u16.to_le_bytes());
    header[58..60].copy_from_slice(&64_u16.to_le_bytes());
    header[60..62].copy_from_slice(&3_u16.to_le_bytes());
    header[62..64].copy_from_slice(&2_u16.to_le_bytes()); // the sections' names
    let section = |kind: u32, at: u64, bytes: u64, link: u32, entry: u64| {
        let mut section = vec![0; 64];
        section[4..8].copy_from_slice(&kind.to_le_bytes());
        section[24..32].copy_from_slice(&at.to_le_bytes());
        section[32..40].copy_from_slice(&bytes.to_le_bytes());
        section[40..44].copy_from_slice(&link.to_le_bytes());
        section[56..64].copy_from_slice(&entry.to_le_bytes());
        section
    };
    let all = [
        header,
        vec![0; 64],
        section(elf::SHT_DYNSYM, 4096, bytes, 2, 24),
        section(elf::SHT_STRTAB, 256, 1, 0, 0),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(&all.concat(), 0).unwrap();
    file.as_file().set_len(4096 + bytes).unwrap();
    file
}

#[test]
fn of_a_file_that_claims_huge_tables_little_is_read() {
    let small = with_symbols(24 * 1000);
    let error = Library::open(small.path()).unwrap_err();
    assert!(matches!(error, LibraryError::NoSymbols(_)), "{error}");
    let large = with_symbols(24 * 10_000_000);
    let error = Library::open(large.path()).unwrap_err();
    assert!(matches!(error, LibraryError::Elf(..)), "{error}");
    let huge = with_symbols(24 << 30);
    let error = Library::open(huge.path()).unwrap_err();
    assert!(error.to_string().contains("bytes"), "{error}");
}
