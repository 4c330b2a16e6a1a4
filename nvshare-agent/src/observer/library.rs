//! A libcuda file: opened once; its symbols, their code and the probes are all found through that one descriptor, so
//! that nothing can be exchanged in between.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nvshare_common::event::{Cookie, Shape};
use nvshare_common::probe::{Call, PROBES};
use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSymbol, ReadCache, ReadRef, SymbolKind};

use super::site;

/// What makes two names the same file: device and inode, as the file system under the name tells them. An overlay may
/// tell others than the file below it does; see [`Library::already_probed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// One probe of one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The function.
    pub symbol: &'static str,
    /// Which counter.
    pub call: Call,
    /// Where in the file.
    pub offset: u64,
    /// Whether its result is asked for.
    pub returns: bool,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
}

/// Why a file is not observed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The file cannot be opened.
    #[error("cannot open {0}: {1} (the agent must run as root and see the host's processes)")]
    Open(PathBuf, io::Error),
    /// Not a library.
    #[error("{0} is not a 64-bit ELF library of this machine: {1}")]
    Elf(PathBuf, String),
    /// None of the functions is in it.
    #[error("{0} exports none of the CUDA driver's functions: is it libcuda.so.1?")]
    NoSymbols(PathBuf),
}

/// An open libcuda file and the probes it can take.
#[derive(Debug)]
pub struct Library {
    file: File,
    /// The name it was found under, for people.
    pub path: PathBuf,
    /// Which file it is.
    pub identity: Identity,
    bytes: u64,
    /// One for each function found, no two at the same place.
    pub points: Vec<Point>,
    /// Functions of the table that it does not export.
    pub missing: Vec<&'static str>,
}

impl Library {
    /// The identity of a file, without looking into it.
    pub fn identify(path: &Path) -> Result<(File, Identity), LibraryError> {
        let wrong = |error| LibraryError::Open(path.to_owned(), error);
        let file = File::open(path).map_err(wrong)?;
        let status = file.metadata().map_err(wrong)?;
        if !status.is_file() {
            return Err(wrong(io::Error::other("not a regular file")));
        }
        Ok((file, Identity { device: status.dev(), inode: status.ino() }))
    }

    /// Opens a file and finds its probes.
    pub fn open(path: &Path) -> Result<Library, LibraryError> {
        let (file, identity) = Library::identify(path)?;
        Library::read(path, file, identity)
    }

    /// Finds the probes of a file that is open already.
    pub fn read(path: &Path, file: File, identity: Identity) -> Result<Library, LibraryError> {
        let elf_error = |error: object::Error| LibraryError::Elf(path.to_owned(), error.to_string());
        let bytes = file.metadata().map_err(|error| LibraryError::Open(path.to_owned(), error))?.len();
        let cache = ReadCache::new(file);
        let elf = ElfFile64::<object::Endianness, _>::parse(&cache).map_err(elf_error)?;
        let here = if cfg!(target_arch = "x86_64") {
            object::Architecture::X86_64
        } else {
            object::Architecture::Aarch64
        };
        if elf.architecture() != here {
            return Err(LibraryError::Elf(path.to_owned(), format!("{:?}", elf.architecture())));
        }
        let wanted: HashMap<&[u8], usize> =
            PROBES.iter().enumerate().map(|(index, probe)| (probe.symbol.as_bytes(), index)).collect();
        let mut found: Vec<Option<(u64, u64)>> = vec![None; PROBES.len()];
        for symbol in elf.dynamic_symbols() {
            if symbol.is_definition()
                && symbol.kind() == SymbolKind::Text
                && let Ok(name) = symbol.name_bytes()
                && let Some(&index) = wanted.get(name)
            {
                found[index] = Some((symbol.address(), symbol.size()));
            }
        }
        let mut points: Vec<Point> = Vec::new();
        let mut missing = Vec::new();
        for (probe, symbol) in PROBES.iter().zip(found) {
            let Some((address, length)) = symbol else {
                missing.push(probe.symbol);
                continue;
            };
            let code = code(&elf, &cache, address, length);
            let chosen = code.and_then(|(offset, code)| Some((offset, site::choose(code, address)?)));
            let Some((offset, site)) = chosen else {
                tracing::warn!(library = %path.display(), symbol = probe.symbol, "not observed: its code does not decode");
                missing.push(probe.symbol);
                continue;
            };
            let offset = offset + site.offset;
            if let Some(other) = points.iter().find(|point| point.offset == offset) {
                // One function under two names: counted once.
                tracing::debug!(symbol = probe.symbol, same_as = other.symbol, "an alias");
                continue;
            }
            let emulated = site.emulated;
            points.push(Point {
                symbol: probe.symbol,
                call: probe.call,
                offset,
                returns: probe.returns,
                emulated,
            });
        }
        if points.is_empty() {
            return Err(LibraryError::NoSymbols(path.to_owned()));
        }
        let file = cache.into_inner();
        Ok(Library { file, path: path.to_owned(), identity, bytes, points, missing })
    }

    /// The open file under a name that the kernel resolves to exactly this file.
    pub fn descriptor_path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Whether both hold the same code, as far as probes can tell.
    pub fn looks_like(&self, other: &Library) -> bool {
        self.bytes == other.bytes && self.points == other.points
    }

    /// Whether every place holds a breakpoint already: then this is a file observed before under another identity (an
    /// overlay's and the one below are the same inode to the kernel, though not to `stat`). Seen in a mapping of our own:
    /// the kernel puts the breakpoints of a file into every private mapping of it, not into what is read from it.
    pub fn already_probed(&self) -> bool {
        let Ok(memory) = File::open("/proc/self/mem") else { return false };
        let map = |point: &Point| -> Option<bool> {
            let page = point.offset & !0xfff;
            // SAFETY: a new private mapping of a page of an open file, at an address of the kernel's choice.
            let place = unsafe {
                rustix::mm::mmap(
                    std::ptr::null_mut(),
                    4096,
                    rustix::mm::ProtFlags::READ,
                    rustix::mm::MapFlags::PRIVATE,
                    &self.file,
                    page,
                )
            }
            .ok()?;
            // Through the kernel: a file that is cut down meanwhile is an error here, not a SIGBUS.
            let mut byte = [0];
            let read = memory.read_at(&mut byte, place as u64 + (point.offset - page));
            // SAFETY: the mapping made above; nothing refers to it any more.
            let _ = unsafe { rustix::mm::munmap(place, 4096) };
            Some(read.is_ok_and(|bytes| bytes == 1) && byte == [0xcc])
        };
        self.points.iter().all(|point| map(point) == Some(true))
    }

    /// The cookie of a probe; `followed` where return probes are possible.
    pub fn cookie(point: &Point, followed: bool) -> Cookie {
        let followed = followed && point.returns;
        let located = point.symbol.contains("_v2") && matches!(point.call, Call::Prefetch | Call::Advise);
        let flags = if followed { Cookie::FOLLOWED } else { 0 } | if located { Cookie::LOCATED } else { 0 };
        Cookie::new(point.call, shape(point.symbol, point.call), flags)
    }
}

/// Where the function at `address` lies in the file, and the beginning of its code. `length` 0: the symbol does not say.
fn code<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, object::Endianness, R>,
    file: R,
    address: u64,
    length: u64,
) -> Option<(u64, &'data [u8])> {
    let endian = elf.endian();
    let (offset, rest) = elf.elf_program_headers().iter().find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr(endian))?;
        let rest = segment.p_filesz(endian).checked_sub(into)?;
        let executable = segment.p_flags(endian) & elf::PF_X != 0;
        (segment.p_type(endian) == elf::PT_LOAD && executable && rest > 0)
            .then(|| (segment.p_offset(endian) + into, rest))
    })?;
    let length = if length == 0 { site::WINDOW as u64 } else { length.min(site::REACH as u64) };
    Some((offset, file.read_bytes_at(offset, length.min(rest)).ok()?))
}

/// How a function takes its arguments.
fn shape(symbol: &str, call: Call) -> Shape {
    match (symbol, call) {
        // The first versions have 32-bit device pointers; nothing built in the last decade calls them.
        ("cuMemAlloc" | "cuMemAllocPitch" | "cuMemFree", _) | (_, Call::Synchronize | Call::GraphLaunch) => {
            Shape::Counted
        }
        ("cuMemAllocPitch_v2", _) => Shape::OutPitch,
        (_, Call::Alloc | Call::AllocAsync | Call::AllocManaged) => Shape::Out,
        (_, Call::Create) => Shape::OutProperties,
        (_, Call::Free | Call::FreeAsync | Call::Release | Call::ContextDestroy) => Shape::Address,
        (_, Call::Map | Call::Unmap | Call::Prefetch | Call::Advise) => Shape::Range,
        ("cuLaunchKernelEx" | "cuLaunchKernelEx_ptsz", Call::Launch) => Shape::LaunchThird,
        (_, Call::Launch) => Shape::LaunchStack,
    }
}
