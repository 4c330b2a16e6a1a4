//! What is loaded in this process, as the loader tells it.

#![expect(unsafe_code, reason = "the loader's and the driver's functions are found and called")]

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;

use super::real::real_dlopen;

/// The loaded object that an address lies in.
pub(crate) struct Object {
    pub(crate) base: usize,
    pub(crate) path: *const libc::c_char,
}

impl Object {
    pub(crate) fn of(address: *const c_void) -> Option<Object> {
        if address.is_null() {
            return None;
        }
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: null_mut(),
        };
        // SAFETY: `info` is writable; any address may be asked about.
        let found: c_int = unsafe { libc::dladdr(address, &raw mut info) };
        (found != 0 && !info.dli_fname.is_null())
            .then(|| Object { base: info.dli_fbase.addr(), path: info.dli_fname })
    }

    /// A handle of the library that `address` lies in, to be closed; none for the program itself, whose scope is everybody's.
    pub(crate) fn open(address: *const c_void) -> Option<*mut c_void> {
        let object = Object::of(address)?;
        // SAFETY: the path is that of a loaded object; NOLOAD only adds a reference.
        let handle = unsafe { real_dlopen(object.path, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(handle)
    }

    /// Whether `address` lies in this library.
    pub(crate) fn is_ours(address: *const c_void) -> bool {
        let here = Object::of(Object::is_ours as *const c_void);
        here.zip(Object::of(address)).is_some_and(|(here, there)| here.base == there.base)
    }

    pub(crate) fn is_libcuda(&self) -> bool {
        // SAFETY: `dladdr` gave a C string that lives as long as the object is loaded, which it is while it is used.
        let path = unsafe { CStr::from_ptr(self.path) }.to_bytes();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        name.starts_with(b"libcuda.so")
    }

    /// Whether there is code at `address`; else it is a variable.
    pub(crate) fn is_code(address: *const c_void) -> bool {
        let mut asked = (address.addr() as u64, false);
        // SAFETY: the callback takes what is passed to it here, and the list is not kept.
        unsafe { libc::dl_iterate_phdr(Some(find_code), (&raw mut asked).cast()) };
        asked.1
    }
}

unsafe extern "C" fn find_code(info: *mut libc::dl_phdr_info, _size: usize, asked: *mut c_void) -> c_int {
    // SAFETY: the loader's description of an object, with an array of that length, and `is_code`'s place.
    unsafe {
        let (info, (address, found)) = (&*info, &mut *asked.cast::<(u64, bool)>());
        let headers = (0..usize::from(info.dlpi_phnum)).map(|index| &*info.dlpi_phdr.add(index));
        *found = headers
            .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
            .any(|header| {
                let start = info.dlpi_addr + header.p_vaddr;
                (start..start + header.p_memsz).contains(address)
            });
        c_int::from(*found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_code_and_variables_are_not() {
        static VARIABLE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
        assert!(
            Object::is_code(find_code as *const c_void) && Object::is_code(libc::getenv as *const c_void)
        );
        assert!(!Object::is_code((&raw const VARIABLE).cast()) && !Object::is_code(std::ptr::null()));
        assert!(!Object::is_code(std::ptr::from_ref(&1).cast()));
    }
}
