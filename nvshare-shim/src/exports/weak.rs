//! What the loader has bound to our exports at the start of a process, and would have bound otherwise without us: put right
//! before `main`. Weak references to driver functions, in programs that run with and without CUDA, are null where no libcuda is
//! in the process; and what a name of the driver's means that some library has given to a variable is `pointers`' matter.
//!
//! This runs in every process that the library is loaded into, before anything else: it allocates nothing, calls nothing but
//! the loader's list of objects, and a look-up for a name where one is bound to us that may be a variable's. Libraries that
//! are opened later, and constructors that run before this one, still see our exports; what these answer without a driver is
//! an error.

#![expect(unsafe_code, reason = "reads and writes what the loader has bound")]

use std::ffi::{CStr, c_char, c_int, c_void};

use super::pointers;
use super::relocations::{Protect, Range, each, numbered, ours};

/// Called by the loader at the start of the process.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

struct Start {
    ours: Range,
    driver_is_there: bool,
    /// A name is bound to us that may be a variable's.
    variables: bool,
}

extern "C" fn at_start() {
    let mut start = Start { ours: ours(), driver_is_there: false, variables: false };
    // SAFETY: the callbacks take what is passed to them here, and the list is not kept.
    unsafe {
        libc::dl_iterate_phdr(Some(find_driver), (&raw mut start.driver_is_there).cast());
        libc::dl_iterate_phdr(Some(unbind), (&raw mut start).cast());
    }
    if start.variables {
        // One by one: a look-up takes another lock of the loader's than its list.
        for object in (0..).map_while(numbered) {
            // SAFETY: what is there at the start stays, and nobody else changes its protection.
            unsafe { each(&object, start.ours, |reference| pointers::put_right(reference, Protect::Again)) };
        }
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

unsafe extern "C" fn unbind(info: *mut libc::dl_phdr_info, _size: usize, start: *mut c_void) -> c_int {
    // SAFETY: as above; what is there at the start stays, and nobody else changes its protection.
    unsafe {
        let start = &mut *start.cast::<Start>();
        let (ours, without_driver) = (start.ours, !start.driver_is_there);
        each(&*info, ours, |reference| {
            // Weak, and undefined here.
            let weak = reference.is_undefined() && reference.symbol.st_info >> 4 == 2;
            if weak && without_driver {
                // Null, as it would be without us.
                reference.bind(0_usize.wrapping_sub(reference.addend), Protect::Again);
            } else {
                start.variables |= pointers::may_be(reference);
            }
        });
    }
    0
}
