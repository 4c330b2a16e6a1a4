//! Variables that have the names of driver functions: pointers that a library fills by look-ups (CUEW and its like). Its own
//! references to them, and others', the loader has bound to our functions of those names, where what it writes would end the
//! process. They are bound as they would be without us: at the start of the process, and, in a library that is opened later,
//! when it opens libcuda or looks a function up, which is before it writes.
//!
//! What is not met: a library opened later that leaves that to another one, or means a third one's variables.

#![expect(unsafe_code, reason = "reads and writes what the loader has bound")]

use std::ffi::{CStr, c_void};
use std::sync::Mutex;

use super::relocations::{Protect, Reference, containing, each, kinds, ours};
use super::table::HOOKS;
use crate::driver::object::Object;
use crate::driver::real::real_dlsym;

/// Whether this may be a variable's: calls are none.
pub(super) fn may_be(reference: &Reference<'_>) -> bool {
    reference.kind != kinds::JUMP
}

/// Binds a reference to the variable that it would be bound to without us, if that is one.
///
/// # Safety
/// As for [`Reference::bind`].
pub(super) unsafe fn put_right(reference: &Reference<'_>, protect: Protect) {
    if !may_be(reference) {
        return;
    }
    let Some(variable) = variable(reference) else { return };
    // SAFETY: the caller's promise; it is a variable of a loaded object, of that size.
    unsafe {
        if reference.kind != kinds::COPY {
            reference.bind(variable, protect);
        } else if has_our_code(reference) {
            reference.bind((variable as *const usize).read_unaligned(), protect);
        }
    }
}

/// The variable that is meant: what everybody finds, if that is one, else the object's own.
fn variable(reference: &Reference<'_>) -> Option<usize> {
    let found = beyond_us(reference.name);
    if found.is_null() {
        return reference.own_variable();
    }
    (!Object::is_code(found)).then_some(found.addr())
}

fn beyond_us(name: &CStr) -> *mut c_void {
    // SAFETY: a C string; this library is the caller. What is said of a name that nobody has is nobody's error.
    unsafe {
        let found = real_dlsym(libc::RTLD_NEXT, name.as_ptr());
        if found.is_null() {
            libc::dlerror();
        }
        found
    }
}

/// Whether the program's own copy of a pointer, which everybody uses, was made of our function, and not written to since.
unsafe fn has_our_code(reference: &Reference<'_>) -> bool {
    let of_that_name = |name: &str| name.as_bytes() == reference.name.to_bytes();
    let hook = HOOKS.iter().find(|hook| of_that_name(hook.name()));
    let is_pointer = reference.symbol.st_size == size_of::<usize>() as u64;
    // SAFETY: the program's variable, of that size, and the code of a function, none of which is shorter.
    is_pointer
        && hook.is_some_and(|hook| unsafe {
            reference.slot.read_unaligned() == hook.address.cast::<usize>().read_unaligned()
        })
}

/// Libraries that were looked at, by their addresses; until one is unloaded.
struct Seen {
    unloaded: u64,
    at: Vec<u64>,
}

/// The code at `caller` is about to look for the driver's functions. No lock is held while the loader is asked: it may be a
/// thread that loads a library, and one that waits for that may be here, too.
pub(super) fn met(caller: *const c_void) {
    static SEEN: Mutex<Seen> = Mutex::new(Seen { unloaded: 0, at: Vec::new() });
    let Some(info) = containing(caller) else { return };
    // Never waited for: in the child of a fork nobody may be there to release it.
    if let Ok(mut seen) = SEEN.try_lock() {
        if seen.unloaded != info.dlpi_subs {
            *seen = Seen { unloaded: info.dlpi_subs, at: Vec::new() };
        }
        if seen.at.contains(&info.dlpi_addr) {
            return;
        }
    }
    // SAFETY: its code is running. What is written to stays writable: another thread may be doing the same.
    unsafe { each(&info, ours(), |reference| put_right(reference, Protect::NoMore)) };
    if let Ok(mut seen) = SEEN.try_lock()
        && seen.unloaded == info.dlpi_subs
    {
        seen.at.push(info.dlpi_addr);
    }
}
