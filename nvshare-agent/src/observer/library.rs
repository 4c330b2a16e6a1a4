//! A libcuda file: opened once; its symbols, their code and the probes are all found through that one descriptor, so
//! that nothing can be exchanged in between.

#![expect(unsafe_code, reason = "a file is mapped, for what its pages hold")]

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nvshare_common::event::{Cookie, Shape};
use nvshare_common::probe::{Call, Manner, PROBES, Probe};
use object::elf;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSymbol, ReadCache, ReadRef, SymbolKind};

use super::find;
use super::site::{self, Site};

/// The shortest jump that somebody puts over a function.
const JUMP: u64 = 5;
/// No driver's library is larger (NVIDIA's have 80 to 100 MB).
const LARGEST: u64 = 512 << 20;
/// No more than this is read of one: of NVIDIA's, the tables of symbols and the beginnings of functions are a few MB.
const MOST_READ: u64 = 64 << 20;

mod behind;

type Elf<'data> = ElfFile64<'data, object::Endianness, Bounded<'data>>;

/// A file of which only so much is read, whatever it says of itself: a sparse one costs nothing to make.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    file: &'a ReadCache<File>,
    left: &'a Cell<u64>,
}

impl Bounded<'_> {
    fn charge(self, bytes: u64) -> Result<(), ()> {
        self.left.set(self.left.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'a> ReadRef<'a> for Bounded<'a> {
    fn len(self) -> Result<u64, ()> {
        self.file.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.charge(size)?;
        self.file.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let found = self.file.read_bytes_at_until(range, delimiter)?;
        self.charge(found.len() as u64)?;
        Ok(found)
    }
}

/// What makes two names the same file: device and inode, as the file system under the name tells them. An overlay may
/// tell others than the file below it does; see [`Library::probed_at`].
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
    /// Where the code begins that was decoded to find the place, and where the instruction at the place, or a jump over
    /// it, would end: a process in which these bytes are others must not get the probe.
    pub begin: u64,
    /// See `begin`.
    pub end: u64,
    /// Whether its result is asked for.
    pub returns: bool,
    /// Whether the kernel emulates the instruction there.
    pub emulated: bool,
    /// Whether it is behind the exported function, where nobody else puts anything.
    pub behind: bool,
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
    /// Functions that are left alone: their only place is at their beginning, where others put jumps.
    pub exposed: Vec<&'static str>,
}

impl Library {
    /// The identity of a file, without looking into it.
    pub fn identify(file: &File) -> io::Result<Identity> {
        let status = file.metadata()?;
        Ok(Identity { device: status.dev(), inode: status.ino() })
    }

    /// Opens a file and finds its probes.
    pub fn open(path: &Path) -> Result<Library, LibraryError> {
        let wrong = |error| LibraryError::Open(path.to_owned(), error);
        let file = find::open_here(path).map_err(wrong)?;
        let identity = Library::identify(&file).map_err(wrong)?;
        Library::read(path, file, identity)
    }

    /// Finds the probes of a file that is open already.
    pub fn read(path: &Path, file: File, identity: Identity) -> Result<Library, LibraryError> {
        let elf_error = |error: object::Error| LibraryError::Elf(path.to_owned(), error.to_string());
        let bytes = file.metadata().map_err(|error| LibraryError::Open(path.to_owned(), error))?.len();
        if bytes > LARGEST {
            return Err(LibraryError::Elf(path.to_owned(), format!("it has {bytes} bytes")));
        }
        let scanned = file.try_clone().map_err(|error| LibraryError::Open(path.to_owned(), error))?;
        let cache = ReadCache::new(file);
        let left = Cell::new(MOST_READ);
        let bounded = Bounded { file: &cache, left: &left };
        let elf = ElfFile64::<object::Endianness, _>::parse(bounded).map_err(elf_error)?;
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
        let mut found: Vec<Option<Symbol>> = vec![None; PROBES.len()];
        for symbol in elf.dynamic_symbols() {
            if symbol.is_definition()
                && symbol.kind() == SymbolKind::Text
                && let Ok(name) = symbol.name_bytes()
                && let Some(&index) = wanted.get(name)
            {
                found[index] = Some(Symbol { address: symbol.address(), length: symbol.size() });
            }
        }
        let code = Code { elf: &elf, bytes: bounded, behind: behind::find(&elf, bounded, &found, &scanned) };
        let mut points: Vec<Point> = Vec::new();
        let (mut missing, mut exposed) = (Vec::new(), Vec::new());
        for (index, (probe, symbol)) in PROBES.iter().zip(found).enumerate() {
            let Some(symbol) = symbol else {
                missing.push(probe.symbol);
                continue;
            };
            let Some(point) = code.point(index, symbol) else {
                tracing::warn!(library = %path.display(), symbol = probe.symbol, "not observed: its code does not decode");
                missing.push(probe.symbol);
                continue;
            };
            if let Some(other) = points.iter().find(|other| other.offset == point.offset) {
                // One function under two names: counted once.
                tracing::debug!(symbol = probe.symbol, same_as = other.symbol, "an alias");
            } else if cfg!(target_arch = "x86_64") && !point.behind && probe.call.is_hooked_by_others() {
                exposed.push(probe.symbol);
            } else {
                points.push(point);
            }
        }
        if points.is_empty() {
            return Err(LibraryError::NoSymbols(path.to_owned()));
        }
        let file = cache.into_inner();
        Ok(Library { file, path: path.to_owned(), identity, bytes, points, missing, exposed })
    }

    /// The open file under a name that the kernel resolves to exactly this file.
    pub fn descriptor_path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Some bytes of the file.
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Whether two names lead to the same contents, as far as `stat` can tell: an overlay has another inode than the file
    /// below it.
    pub(super) fn may_be(&self, other: &File) -> bool {
        let (Ok(this), Ok(other)) = (self.file.metadata(), other.metadata()) else { return false };
        (this.dev(), this.ino()) == (other.dev(), other.ino())
            || (this.len(), this.mtime(), this.mtime_nsec())
                == (other.len(), other.mtime(), other.mtime_nsec())
    }

    /// Whether both hold the same code, as far as probes can tell.
    pub fn looks_like(&self, other: &Library) -> bool {
        self.bytes == other.bytes && self.points == other.points
    }

    /// How many of these places hold a breakpoint already. If all that another file of the same contents has do, this is
    /// that file under another identity (an overlay's and the one below are the same inode to the kernel, though not to
    /// `stat`), or one that another observer watches. Seen in a mapping of our own: the kernel puts the breakpoints of a
    /// file into every private mapping of it, not into what is read from it.
    pub fn probed_at<'a>(&self, points: impl IntoIterator<Item = &'a Point>) -> usize {
        let Ok(memory) = File::open("/proc/self/mem") else { return 0 };
        let probed = |point: &&Point| {
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
            };
            let Ok(place) = place else { return false };
            // Through the kernel: a file that is cut down meanwhile is an error here, not a SIGBUS.
            let mut byte = [0];
            let read = memory.read_at(&mut byte, place as u64 + (point.offset - page));
            // SAFETY: the mapping made above; nothing refers to it any more.
            let _ = unsafe { rustix::mm::munmap(place, 4096) };
            read.is_ok_and(|bytes| bytes == 1) && byte == [0xcc]
        };
        points.into_iter().filter(probed).count()
    }

    /// How a function takes its arguments.
    fn shape(probe: &Probe) -> Shape {
        shape(probe.symbol, probe.call)
    }

    /// The cookie of a probe; `followed` where return probes are possible.
    pub fn cookie(point: &Point, followed: bool) -> Cookie {
        let followed = followed && point.returns;
        let located = point.symbol.contains("_v2") && matches!(point.call, Call::Prefetch | Call::Advise);
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(followed, Cookie::FOLLOWED)
            | flag(located, Cookie::LOCATED)
            | flag(point.returns, Cookie::WANTED);
        Cookie::new(point.call, shape(point.symbol, point.call), Manner::of(point.symbol), flags)
    }
}

/// Where an exported function stands. Length 0: the table does not say.
#[derive(Clone, Copy)]
struct Symbol {
    address: u64,
    length: u64,
}

/// The code of a library.
struct Code<'a, 'data> {
    elf: &'a Elf<'data>,
    bytes: Bounded<'data>,
    /// For each function of the table, the one that it passes its arguments on to.
    behind: Vec<Option<u64>>,
}

impl Code<'_, '_> {
    /// The place for the probe on a function of the table.
    fn point(&self, index: usize, symbol: Symbol) -> Option<Point> {
        let behind = self.behind[index].and_then(|address| self.place(address, 0));
        let (begin, site, length) = behind.or_else(|| self.place(symbol.address, symbol.length))?;
        let probe = &PROBES[index];
        let Probe { symbol, call, .. } = *probe;
        // Nobody looks at the result of what is only counted.
        let returns = probe.returns && Library::shape(probe) != Shape::Counted;
        let offset = begin.checked_add(site.offset)?;
        Some(Point {
            symbol,
            call,
            offset,
            begin,
            // A breakpoint over a jump can be told from one over our instruction by what follows.
            end: offset.checked_add(length.max(JUMP))?,
            returns,
            emulated: site.emulated,
            behind: behind.is_some(),
        })
    }

    /// Where a function begins in the file, the site in it, and how long the instruction there is.
    fn place(&self, address: u64, length: u64) -> Option<(u64, Site, u64)> {
        let (begin, code) = code(self.elf, self.bytes, address, length)?;
        let site = site::choose(code, address)?;
        Some((begin, site, site::length(code.get(site.offset as usize..)?)))
    }
}

/// Where the function at `address` lies in the file, and the beginning of its code. `length` 0: nobody says.
fn code<'data>(
    elf: &Elf<'data>,
    file: Bounded<'data>,
    address: u64,
    length: u64,
) -> Option<(u64, &'data [u8])> {
    let (offset, rest) = executable(elf).find_map(|segment| {
        let into = address.checked_sub(segment.address)?;
        let rest = segment.bytes.checked_sub(into).filter(|rest| *rest > 0)?;
        Some((segment.offset.checked_add(into)?, rest))
    })?;
    let length = if length == 0 { site::WINDOW as u64 } else { length.min(site::REACH as u64) };
    Some((offset, file.read_bytes_at(offset, length.min(rest)).ok()?))
}

/// A part of the file that is mapped to be executed.
struct Segment {
    address: u64,
    offset: u64,
    bytes: u64,
}

fn executable<'data>(elf: &Elf<'data>) -> impl Iterator<Item = Segment> + use<'data> {
    let endian = elf.endian();
    let here = move |segment: &elf::ProgramHeader64<object::Endianness>| {
        segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian) & elf::PF_X != 0
    };
    elf.elf_program_headers().iter().filter(move |segment| here(segment)).map(move |segment| Segment {
        address: segment.p_vaddr(endian),
        offset: segment.p_offset(endian),
        bytes: segment.p_filesz(endian),
    })
}

/// How a function takes its arguments.
fn shape(symbol: &str, call: Call) -> Shape {
    if ["cuMemAlloc", "cuMemAllocPitch", "cuMemFree"].contains(&symbol) {
        // The first versions have 32-bit device pointers; nothing built in the last decade calls them.
        return Shape::Counted;
    }
    match (symbol, call) {
        (
            _,
            Call::Synchronize
            | Call::GraphLaunch
            | Call::Share
            | Call::HostAlloc
            | Call::Array
            | Call::Pool
            | Call::Module
            | Call::HostFunction
            | Call::Batch,
        ) => Shape::Counted,
        (_, Call::ContextCreate | Call::Handle) => Shape::OutRest,
        ("cuMemAllocPitch_v2", _) => Shape::OutPitch,
        (_, Call::Alloc | Call::AllocAsync | Call::AllocManaged) => Shape::Out,
        (_, Call::Create) => Shape::OutProperties,
        (_, Call::Free | Call::FreeAsync | Call::Release | Call::ContextDestroy) => Shape::Address,
        (_, Call::Map | Call::Unmap | Call::Prefetch | Call::Advise) => Shape::Range,
        ("cuLaunchKernelEx" | "cuLaunchKernelEx_ptsz", Call::Launch) => Shape::LaunchThird,
        (_, Call::Launch) => Shape::LaunchStack,
    }
}

#[cfg(test)]
mod tests;
