//! Hooks below us. Communication libraries put a jump at the entry of the driver's own functions, to hear of memory that
//! goes away under their caches. Calls that end in this library would never get there: so where an entry is not what the
//! driver's file has, it is passed with a call that the driver refuses (it knows nothing of our addresses) and that has no
//! effect, but that the hook hears of first.
//!
//! What cannot be had: the address of an allocation is not told that way, because it does not exist before.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use super::Bare;
use crate::cuda::CUresult;
use crate::driver::{Symbol, driver};
use crate::streams::Relaxed;

/// How much of an entry a jump takes, at least: an absolute one has 14 bytes.
const ENTRY: usize = 16;
/// A breakpoint of the kernel's (a uprobe) is no hook.
const BREAKPOINT: u8 = 0xcc;

/// Lets who hooked the driver's entry hear of a call that ends here: makes it, for an address that is nothing to the driver.
pub(crate) fn hear<F: Fn() -> CUresult>(bare: &Bare<F>) {
    if is_hooked(bare.symbol()) {
        // A refused call may still break a capture in another thread.
        let _relaxed = Relaxed::new();
        let _ = bare.call();
    }
}

/// The same of an allocation: one of nothing.
pub(crate) fn hear_of_allocation(symbol: Symbol) {
    if is_hooked(symbol) {
        let _relaxed = Relaxed::new();
        let (mut address, mut pitch) = (0, 0);
        // SAFETY: places for what is never given.
        let _ = unsafe {
            match symbol {
                Symbol::cuMemAllocPitch_v2 => {
                    driver().cuMemAllocPitch_v2(&raw mut address, &raw mut pitch, 0, 0, 4)
                }
                _ => driver().cuMemAlloc_v2(&raw mut address, 0),
            }
        };
    }
}

/// Whether the function begins otherwise than in the driver's file. Where that cannot be found out it may: a call for nobody
/// costs its time.
fn is_hooked(symbol: Symbol) -> bool {
    static ORIGINALS: [OnceLock<Option<[u8; ENTRY]>>; Symbol::ALL.len()] =
        [const { OnceLock::new() }; Symbol::ALL.len()];
    let Some(entry) = driver().entry(symbol) else { return false };
    let original = ORIGINALS[symbol as usize].get_or_init(|| in_file(entry.addr()));
    original.is_none_or(|original| {
        // SAFETY: the code of a function of a library that is never unloaded; it is never shorter than that much, functions
        // are aligned to it.
        let live = unsafe { entry.cast::<[u8; ENTRY]>().read_volatile() };
        differ(&live, &original)
    })
}

fn differ(live: &[u8], original: &[u8]) -> bool {
    live.iter().zip(original).any(|(live, original)| live != original && *live != BREAKPOINT)
}

/// What the file has where `address` is mapped from; none where that cannot be found out.
fn in_file(address: usize) -> Option<[u8; ENTRY]> {
    let maps = std::fs::read("/proc/thread-self/maps").ok()?;
    let (path, offset) = place_in_file(&maps, address)?;
    let mut bytes = [0; ENTRY];
    File::open(path).ok()?.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// The file and the place in it that `address` is mapped from, by the lines of the thread's `maps`. (That of the process is
/// empty once its first thread has ended.) Paths are bytes.
fn place_in_file(maps: &[u8], address: usize) -> Option<(&Path, u64)> {
    maps.split(|byte| *byte == b'\n').find_map(|line| {
        let at = line.iter().position(|byte| *byte == b'/')?;
        let (before, path) = line.split_at(at);
        let mut words = str::from_utf8(before).ok()?.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        if !(start..end).contains(&address) {
            return None;
        }
        let offset = u64::from_str_radix(words.nth(1)?, 16).ok()?;
        Some((Path::new(OsStr::from_bytes(path)), offset + (address - start) as u64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"7f0000000000-7f0000001000 r--p 00000000 fe:01 12  /usr/lib/with space \xe9/libcuda.so.1\n\
                        7f0000001000-7f0000004000 r-xp 00001000 fe:01 12  /usr/lib/with space \xe9/libcuda.so.1\n\
                        7f0000004000-7f0000005000 rw-p 00000000 00:00 0\n";

    #[test]
    fn an_address_is_found_in_the_file_it_is_mapped_from() {
        let found = place_in_file(MAPS, 0x7f00_0000_1234);
        assert_eq!(
            found,
            Some((Path::new(OsStr::from_bytes(b"/usr/lib/with space \xe9/libcuda.so.1")), 0x1234))
        );
        assert_eq!(place_in_file(MAPS, 0x7f00_0000_4010), None, "no file");
        assert_eq!(place_in_file(MAPS, 0x1000), None);
    }

    #[test]
    fn a_jump_is_a_hook_and_a_breakpoint_of_the_kernel_is_none() {
        let original = *b"\x55\x48\x89\xe5\x41\x57\x41\x56";
        let mut probed = original;
        probed[0] = BREAKPOINT;
        assert!(!differ(&original, &original) && !differ(&probed, &original));
        let mut hooked = original;
        hooked[..2].copy_from_slice(b"\xff\x25");
        assert!(differ(&hooked, &original));
    }

    #[test]
    fn this_very_code_is_as_its_file_has_it() {
        let address = place_in_file as *const () as usize;
        let live = code_at(address);
        assert_eq!(in_file(address), Some(live));
    }

    fn code_at(address: usize) -> [u8; ENTRY] {
        let pointer = std::ptr::with_exposed_provenance::<[u8; ENTRY]>(address);
        // SAFETY: the code of a function of this program.
        unsafe { pointer.read_volatile() }
    }
}
