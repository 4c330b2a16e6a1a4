//! What the loader has bound in an object, by the object's own tables, and how to bind it anew. It allocates nothing, reads only
//! what the loader itself has just read, and writes where it is told to.

#![expect(unsafe_code, reason = "reads and writes what the loader has bound")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null;

/// Addresses.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) start: usize,
    end: usize,
}

impl Range {
    pub(super) fn contains(self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Where this library lies.
pub(super) fn ours() -> Range {
    let mut ours = Range { start: 0, end: 0 };
    // SAFETY: the callback takes what is passed to it here, and the list is not kept.
    unsafe { libc::dl_iterate_phdr(Some(find_ours), (&raw mut ours).cast()) };
    ours
}

unsafe extern "C" fn find_ours(info: *mut libc::dl_phdr_info, _size: usize, ours: *mut c_void) -> c_int {
    // SAFETY: the loader's description of an object, and the place for the answer.
    unsafe {
        let object = loaded(&*info);
        let here = object.contains(find_ours as *const () as usize);
        if here {
            ours.cast::<Range>().write(object);
        }
        c_int::from(here)
    }
}

/// Where the object lies: around all its loaded segments.
pub(super) unsafe fn loaded(info: &libc::dl_phdr_info) -> Range {
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
pub(super) mod kinds {
    pub(in super::super) const ABSOLUTE: u32 = 1;
    pub(in super::super) const COPY: u32 = 5;
    pub(in super::super) const GLOBAL: u32 = 6;
    pub(in super::super) const JUMP: u32 = 7;
}
#[cfg(target_arch = "aarch64")]
pub(super) mod kinds {
    pub(in super::super) const ABSOLUTE: u32 = 257;
    pub(in super::super) const COPY: u32 = 1024;
    pub(in super::super) const GLOBAL: u32 = 1025;
    pub(in super::super) const JUMP: u32 = 1026;
}

/// What is read of an object.
struct Tables {
    strings: *const c_char,
    symbols: *const libc::Elf64_Sym,
    /// Relocations with a symbol, and those of calls: where they begin, and how many bytes they have.
    relocations: [(*const libc::Elf64_Rela, usize); 2],
}

/// The loader's description of the object that `address` lies in.
pub(super) fn containing(address: *const c_void) -> Option<libc::dl_phdr_info> {
    let mut asked = (address.addr(), None);
    // SAFETY: the callback takes what is passed to it here, and the list is not kept.
    unsafe { libc::dl_iterate_phdr(Some(find_containing), (&raw mut asked).cast()) };
    asked.1
}

unsafe extern "C" fn find_containing(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    asked: *mut c_void,
) -> c_int {
    // SAFETY: the loader's description of an object, and `containing`'s place.
    unsafe {
        let asked = &mut *asked.cast::<(usize, Option<libc::dl_phdr_info>)>();
        let here = loaded(&*info).contains(asked.0);
        if here {
            asked.1 = Some(*info);
        }
        c_int::from(here)
    }
}

/// The loader's description of the object that is so far down its list. To be used without its lock, while all stay loaded.
pub(super) fn numbered(index: usize) -> Option<libc::dl_phdr_info> {
    let mut asked = (index, None);
    // SAFETY: the callback takes what is passed to it here, and the list is not kept.
    unsafe { libc::dl_iterate_phdr(Some(find_numbered), (&raw mut asked).cast()) };
    asked.1
}

unsafe extern "C" fn find_numbered(info: *mut libc::dl_phdr_info, _size: usize, asked: *mut c_void) -> c_int {
    // SAFETY: the loader's description of an object, and `numbered`'s place.
    unsafe {
        let (left, found) = &mut *asked.cast::<(usize, Option<libc::dl_phdr_info>)>();
        if *left == 0 {
            *found = Some(*info);
            return 1;
        }
        *left -= 1;
        0
    }
}

/// A relocation with a symbol whose name begins with `cu`.
pub(super) struct Reference<'a> {
    pub(super) info: &'a libc::dl_phdr_info,
    pub(super) kind: u32,
    pub(super) symbol: &'a libc::Elf64_Sym,
    pub(super) name: &'a CStr,
    /// Where the loader has written.
    pub(super) slot: *mut usize,
    /// What it has added.
    pub(super) addend: usize,
}

impl Reference<'_> {
    /// Whether the object itself has no such symbol.
    pub(super) fn is_undefined(&self) -> bool {
        self.symbol.st_shndx == 0
    }

    /// Where the object's own variable of that name lies, if it has one.
    pub(super) fn own_variable(&self) -> Option<usize> {
        const STT_OBJECT: u8 = 1;
        let own = !self.is_undefined() && self.symbol.st_info & 0xf == STT_OBJECT;
        own.then(|| (self.info.dlpi_addr + self.symbol.st_value) as usize)
    }

    /// Binds it to `address`.
    ///
    /// # Safety
    /// Nothing else changes the protection of this page.
    pub(super) unsafe fn bind(&self, address: usize, again: Protect) {
        // SAFETY: the loader has written there; the caller's promise.
        unsafe { overwrite(self.info, self.slot, address.wrapping_add(self.addend), again) };
    }
}

/// Tells each reference of the object that is bound into this library, or that the loader has copied a variable for.
///
/// # Safety
/// The object stays loaded; it is the loader's description of it.
pub(super) unsafe fn each(info: &libc::dl_phdr_info, ours: Range, mut tell: impl FnMut(&Reference<'_>)) {
    // SAFETY: the caller's promise.
    unsafe {
        let object = loaded(info);
        if object.start == ours.start {
            return;
        }
        let Some(tables) = tables(info, object) else { return };
        for (first, bytes) in tables.relocations {
            for index in 0..bytes / size_of::<libc::Elf64_Rela>() {
                if let Some(reference) = reference(info, object, &tables, &*first.add(index), ours) {
                    tell(&reference);
                }
            }
        }
    }
}

unsafe fn reference<'a>(
    info: &'a libc::dl_phdr_info,
    object: Range,
    tables: &Tables,
    relocation: &libc::Elf64_Rela,
    ours: Range,
) -> Option<Reference<'a>> {
    let (symbol, kind) = ((relocation.r_info >> 32) as usize, relocation.r_info as u32);
    let known = matches!(kind, kinds::ABSOLUTE | kinds::GLOBAL | kinds::JUMP | kinds::COPY);
    let slot = info.dlpi_addr as usize + relocation.r_offset as usize;
    if symbol == 0 || !known || !object.contains(slot) {
        return None;
    }
    let slot = slot as *mut usize;
    let addend = if kind == kinds::ABSOLUTE { relocation.r_addend as usize } else { 0 };
    // SAFETY: the loader has just written there.
    let bound = unsafe { slot.read_unaligned() };
    if kind != kinds::COPY && !ours.contains(bound.wrapping_sub(addend)) {
        return None;
    }
    // SAFETY: the object's own table has the symbol that its relocation names; names are in its strings and end with a zero.
    let (symbol, name) = unsafe {
        let symbol = &*tables.symbols.add(symbol);
        (symbol, CStr::from_ptr(tables.strings.add(symbol.st_name as usize)))
    };
    let ours_perhaps = name.to_bytes().starts_with(b"cu");
    ours_perhaps.then_some(Reference { info, kind, symbol, name, slot, addend })
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

/// Whether what is protected again after it was written to. Not beside other threads, which may be about to write there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protect {
    /// As it was.
    Again,
    /// It stays writable.
    NoMore,
}

/// Writes where the loader has perhaps taken the right to write away since.
pub(super) unsafe fn overwrite(info: &libc::dl_phdr_info, slot: *mut usize, value: usize, again: Protect) {
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
        if protected && again == Protect::Again {
            libc::mprotect(at, page, libc::PROT_READ);
        }
    }
}
