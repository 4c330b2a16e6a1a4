//! Whether the file of a library says that it needs CUDA: read before the loader reads it. All is bounded, and what cannot be
//! read or understood says nothing.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::pread;

/// So many program headers are looked at; a library has a dozen.
const HEADERS: usize = 64;
/// So much of the dynamic section; a library has half a kilobyte.
const DYNAMIC: usize = 1 << 16;
/// The longest name that is understood.
const NAME: usize = 256;

/// Sizes and tags of ELF files of 64 bits (gABI).
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Whether the file at this path names libcuda or cudart among what it needs. A name without a slash is looked for by the loader only.
pub(super) fn names_cuda(path: &CStr) -> bool {
    path.to_bytes().contains(&b'/') && open(path).and_then(|file| look(&file)).unwrap_or(false)
}

fn open(path: &CStr) -> Option<OwnedFd> {
    // What waits for somebody when it is opened (a FIFO) does not wait here.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat(CWD, path, flags, Mode::empty()).ok()?;
    let regular = FileType::from_raw_mode(fstat(&file).ok()?.st_mode) == FileType::RegularFile;
    regular.then_some(file)
}

/// A part of the file as it is in memory.
struct Part {
    offset: u64,
    address: u64,
    bytes: u64,
}

fn look(file: &OwnedFd) -> Option<bool> {
    let header = read(file, 0, HEADER)?;
    // 64 bits, little-endian.
    if header.get(..6)? != b"\x7fELF\x02\x01" || number(&header, 54, 2)? != PROGRAM_HEADER as u64 {
        return None;
    }
    let count = usize::try_from(number(&header, 56, 2)?).ok().filter(|count| *count <= HEADERS)?;
    let headers = read(file, number(&header, 32, 8)?, count * PROGRAM_HEADER)?;
    let parts = |kind| {
        headers
            .chunks_exact(PROGRAM_HEADER)
            .filter(move |header| number(header, 0, 4) == Some(kind))
            .filter_map(|header| {
                let [offset, address, bytes] = [8, 16, 32].map(|at| number(header, at, 8));
                Some(Part { offset: offset?, address: address?, bytes: bytes? })
            })
    };
    let dynamic = parts(PT_DYNAMIC).next()?;
    let bytes = usize::try_from(dynamic.bytes).ok().filter(|bytes| *bytes <= DYNAMIC)?;
    let dynamic = read(file, dynamic.offset, bytes)?;
    let entries = || {
        dynamic
            .chunks_exact(16)
            .filter_map(|entry| Some((number(entry, 0, 8)?, number(entry, 8, 8)?)))
            .take_while(|(tag, _)| *tag != DT_NULL)
    };
    let (_, strings) = entries().find(|(tag, _)| *tag == DT_STRTAB)?;
    let part =
        parts(PT_LOAD).find(|part| strings.checked_sub(part.address).is_some_and(|at| at < part.bytes))?;
    let strings = part.offset.checked_add(strings - part.address)?;
    let mut needed = entries().filter(|(tag, _)| *tag == DT_NEEDED);
    Some(needed.any(|(_, at)| {
        strings
            .checked_add(at)
            .and_then(|at| name(file, at))
            .is_some_and(|name| is_libcuda(&name) || name.starts_with(b"libcudart.so"))
    }))
}

/// Whether a path, or a name, is libcuda's.
pub(super) fn is_libcuda(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path).starts_with(b"libcuda.so")
}

/// The string that begins there.
fn name(file: &OwnedFd, at: u64) -> Option<Vec<u8>> {
    let mut name = vec![0; NAME];
    let length = pread(file, &mut name, at).ok()?;
    name.truncate(length);
    let end = name.iter().position(|byte| *byte == 0)?;
    name.truncate(end);
    Some(name)
}

/// So many bytes from there, all of them.
fn read(file: &OwnedFd, at: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut text = vec![0; bytes];
    (pread(file, &mut text, at).ok()? == bytes).then_some(text)
}

/// A number of `bytes` at `at`.
fn number(from: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let mut whole = [0; 8];
    whole.get_mut(..bytes)?.copy_from_slice(from.get(at..at + bytes)?);
    Some(u64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io::Write;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// A library that needs these, as far as it is read.
    fn library(needed: &[&str]) -> Vec<u8> {
        const STRINGS: usize = 256;
        const ADDRESS: u64 = 0x1000;
        let mut file = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(32, &64_u64.to_le_bytes());
        put(54, &[56, 0, 2, 0]);
        let dynamic = STRINGS + 256;
        for (number, (kind, at, bytes)) in [(1_u32, 0, 1024), (2, dynamic, 512)].into_iter().enumerate() {
            let header = 64 + number * 56;
            put(header, &kind.to_le_bytes());
            put(header + 8, &(at as u64).to_le_bytes());
            put(header + 16, &(ADDRESS + at as u64).to_le_bytes());
            put(header + 32, &(bytes as u64).to_le_bytes());
        }
        let (mut at, mut entry) = (1, dynamic);
        for name in needed {
            put(STRINGS + at, name.as_bytes());
            put(entry, &DT_NEEDED.to_le_bytes());
            put(entry + 8, &(at as u64).to_le_bytes());
            (at, entry) = (at + name.len() + 1, entry + 16);
        }
        put(entry, &DT_STRTAB.to_le_bytes());
        put(entry + 8, &(ADDRESS + STRINGS as u64).to_le_bytes());
        file
    }

    fn is_found(file: &[u8]) -> bool {
        let mut place = tempfile::NamedTempFile::new().unwrap();
        place.write_all(file).unwrap();
        names_cuda(&CString::new(place.path().as_os_str().as_bytes()).unwrap())
    }

    #[test]
    fn only_a_library_that_needs_libcuda_itself_is_found() {
        for needed in
            [&["libcuda.so.1"][..], &["libc.so.6", "/usr/lib/libcuda.so.580.1"], &["libcudart.so.12"]]
        {
            assert!(is_found(&library(needed)), "{needed:?}");
        }
        for other in [&[][..], &["libc.so.6", "libcudart_static", "xlibcuda.so.1"]] {
            assert!(!is_found(&library(other)), "{other:?}");
        }
        for path in [c"libcuda.so.1", c"/no/such/file", c"/dev/null", c"/proc/self/maps", c"/"] {
            assert!(!names_cuda(path), "{path:?}");
        }
        let exe = CString::new(std::env::current_exe().unwrap().as_os_str().as_bytes()).unwrap();
        assert!(!names_cuda(&exe));
    }

    #[test]
    fn a_file_that_ends_too_early_or_lies_says_nothing() {
        let whole = library(&["libcuda.so.1"]);
        for length in 0..whole.len() {
            is_found(&whole[..length]);
        }
        for at in 0..whole.len() {
            let mut lies = whole.clone();
            lies[at..(at + 8).min(1024)].fill(0xff);
            is_found(&lies);
        }
    }
}
