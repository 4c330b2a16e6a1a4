//! Weak references to driver functions, in programs that run with and without CUDA. Where no libcuda is in the process they
//! are null without us; with us the loader has bound them to our exports. Before `main` they are made null again.
//!
//! This runs in every process that the library is loaded into, before anything else: it allocates nothing, calls nothing but
//! the loader's list of objects, reads only what the loader itself has just read, and writes only where such a reference
//! exists. Libraries that are opened later, and constructors that run before this one, still see our exports; what these
//! answer without a driver is an error.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null;

/// Called by the loader at the start of the process.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

extern "C" fn at_start() {
    let mut driver_is_there = false;
    // SAFETY: the callbacks take what is passed to them here, and the list is not kept.
    unsafe {
        libc::dl_iterate_phdr(Some(find_driver), (&raw mut driver_is_there).cast());
        if !driver_is_there {
            let mut ours = Range { start: 0, end: 0 };
            libc::dl_iterate_phdr(Some(find_ours), (&raw mut ours).cast());
            libc::dl_iterate_phdr(Some(unbind), (&raw mut ours).cast());
        }
    }
}

/// Addresses.
#[derive(Clone, Copy)]
struct Range {
    start: usize,
    end: usize,
}

impl Range {
    fn contains(self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

unsafe extern "C" fn find_driver(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: the loader's description of an object, and `at_start`'s place.
    unsafe {
        let there = is_driver((*info).dlpi_name);
        if there {
            found.cast::<bool>().write(true);
        }
        c_int::from(there)
    }
}

/// Whether the path's last part begins as libcuda's does.
unsafe fn is_driver(path: *const c_char) -> bool {
    if path.is_null() {
        return false;
    }
    // SAFETY: the loader's paths end with a zero.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    let name = path.iter().rposition(|byte| *byte == b'/').map_or(path, |at| &path[at + 1..]);
    name.starts_with(b"libcuda.so")
}

unsafe extern "C" fn find_ours(info: *mut libc::dl_phdr_info, _size: usize, ours: *mut c_void) -> c_int {
    // SAFETY: as above.
    unsafe {
        let object = loaded(&*info);
        let here = object.contains(at_start as *const () as usize);
        if here {
            ours.cast::<Range>().write(object);
        }
        c_int::from(here)
    }
}

/// Where the object lies: around all its loaded segments.
unsafe fn loaded(info: &libc::dl_phdr_info) -> Range {
    let mut range = Range { start: usize::MAX, end: 0 };
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the loader's array of that length.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        if header.p_type == libc::PT_LOAD {
            let start = (info.dlpi_addr + header.p_vaddr) as usize;
            range.start = range.start.min(start);
            range.end = range.end.max(start + header.p_memsz as usize);
        }
    }
    range
}

/// Tags of the dynamic section.
const DT_PLTRELSZ: i64 = 2;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_RELA: i64 = 7;
const DT_RELASZ: i64 = 8;
const DT_JMPREL: i64 = 23;
const DT_RELACOUNT: i64 = 0x6fff_fff9;

#[cfg(target_arch = "x86_64")]
mod kinds {
    pub(super) const ABSOLUTE: u32 = 1;
    pub(super) const GLOBAL: u32 = 6;
    pub(super) const JUMP: u32 = 7;
}
#[cfg(target_arch = "aarch64")]
mod kinds {
    pub(super) const ABSOLUTE: u32 = 257;
    pub(super) const GLOBAL: u32 = 1025;
    pub(super) const JUMP: u32 = 1026;
}

/// What is read of an object.
struct Tables {
    strings: *const c_char,
    symbols: *const libc::Elf64_Sym,
    /// Relocations with a symbol, and those of calls: where they begin, and how many bytes they have.
    relocations: [(*const libc::Elf64_Rela, usize); 2],
}

unsafe extern "C" fn unbind(info: *mut libc::dl_phdr_info, _size: usize, ours: *mut c_void) -> c_int {
    // SAFETY: as above.
    unsafe {
        let (info, ours) = (&*info, ours.cast::<Range>().read());
        let object = loaded(info);
        if object.start != ours.start
            && let Some(tables) = tables(info, object)
        {
            for (first, bytes) in tables.relocations {
                for index in 0..bytes / size_of::<libc::Elf64_Rela>() {
                    unbind_one(info, object, &tables, &*first.add(index), ours);
                }
            }
        }
    }
    0
}

unsafe fn tables(info: &libc::dl_phdr_info, object: Range) -> Option<Tables> {
    let base = info.dlpi_addr as usize;
    // SAFETY: the loader's array of that length.
    let dynamic = (0..usize::from(info.dlpi_phnum))
        .map(|index| unsafe { &*info.dlpi_phdr.add(index) })
        .find(|header| header.p_type == libc::PT_DYNAMIC)?;
    let mut entry = (base + dynamic.p_vaddr as usize) as *const [i64; 2];
    let mut tables = Tables { strings: null(), symbols: null(), relocations: [(null(), 0); 2] };
    let mut relative = 0;
    loop {
        // SAFETY: the section ends with a zero tag.
        let [tag, value] = unsafe { entry.read() };
        let number = value as usize;
        // glibc has put addresses in the place of offsets; others, and of the kernel's own object nobody, have not.
        let address = if object.contains(number) { number } else { base + number };
        match tag {
            0 => break,
            DT_STRTAB => tables.strings = address as *const c_char,
            DT_SYMTAB => tables.symbols = address as *const libc::Elf64_Sym,
            DT_RELA => tables.relocations[0].0 = address as *const libc::Elf64_Rela,
            DT_RELASZ => tables.relocations[0].1 = number,
            DT_JMPREL => tables.relocations[1].0 = address as *const libc::Elf64_Rela,
            DT_PLTRELSZ => tables.relocations[1].1 = number,
            DT_RELACOUNT => relative = number,
            _ => {}
        }
        // SAFETY: not the last one.
        entry = unsafe { entry.add(1) };
    }
    if tables.strings.is_null() || tables.symbols.is_null() {
        return None;
    }
    for (first, bytes) in &mut tables.relocations {
        if first.is_null() {
            *bytes = 0;
        }
    }
    // Those without a symbol come first, and there are many.
    let (first, bytes) = &mut tables.relocations[0];
    let skipped = relative * size_of::<libc::Elf64_Rela>();
    if skipped <= *bytes && !first.is_null() {
        // SAFETY: within the table.
        (*first, *bytes) = (unsafe { first.add(relative) }, *bytes - skipped);
    }
    Some(tables)
}

/// Where this is a weak reference to one of our exports: null, as it would be without us.
unsafe fn unbind_one(
    info: &libc::dl_phdr_info,
    object: Range,
    tables: &Tables,
    relocation: &libc::Elf64_Rela,
    ours: Range,
) {
    let (symbol, kind) = ((relocation.r_info >> 32) as usize, relocation.r_info as u32);
    if symbol == 0 || !matches!(kind, kinds::ABSOLUTE | kinds::GLOBAL | kinds::JUMP) {
        return;
    }
    // SAFETY: the object's own table has the symbol that its relocation names.
    let entry = unsafe { &*tables.symbols.add(symbol) };
    // Weak, and undefined here.
    if entry.st_shndx != 0 || entry.st_info >> 4 != 2 {
        return;
    }
    // SAFETY: names are in the object's strings and end with a zero.
    let name = unsafe { CStr::from_ptr(tables.strings.add(entry.st_name as usize)) };
    if !name.to_bytes().starts_with(b"cu") {
        return;
    }
    let slot = info.dlpi_addr as usize + relocation.r_offset as usize;
    let addend = if kind == kinds::ABSOLUTE { relocation.r_addend as usize } else { 0 };
    if !object.contains(slot) {
        return;
    }
    let slot = slot as *mut usize;
    // SAFETY: the loader has just written there.
    let bound = unsafe { slot.read_unaligned() };
    if ours.contains(bound.wrapping_sub(addend)) {
        // SAFETY: the same place.
        unsafe { overwrite(info, slot, addend) };
    }
}

/// Writes where the loader has perhaps taken the right to write away since, and takes it away again.
unsafe fn overwrite(info: &libc::dl_phdr_info, slot: *mut usize, value: usize) {
    // SAFETY: a question; pages of this object, whose protection the loader itself has changed at the start.
    unsafe {
        let Ok(page) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) else { return };
        let down = |address: usize| address / page * page;
        // Whole pages only: the last one may hold variables behind what is protected.
        let protected = (0..usize::from(info.dlpi_phnum))
            .map(|index| &*info.dlpi_phdr.add(index))
            .filter(|header| header.p_type == libc::PT_GNU_RELRO)
            .any(|header| {
                let start = (info.dlpi_addr + header.p_vaddr) as usize;
                (down(start)..down(start + header.p_memsz as usize)).contains(&(slot as usize))
            });
        let at = down(slot as usize) as *mut c_void;
        if protected && libc::mprotect(at, page, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return;
        }
        slot.write_unaligned(value);
        if protected {
            libc::mprotect(at, page, libc::PROT_READ);
        }
    }
}
