//! The real driver's entry points, found by the real `dlsym` in the libcuda that the application uses: all of them before the
//! shim takes up work, because a look-up takes the loader's lock, which a thread of the application may hold while it waits
//! at the gate; before that each at its first use. Calls of probed functions are counted before they are made. The functions
//! themselves come from the table.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::cuda::CUresult;
use crate::resolve;
use crate::table::Symbol;

/// The real driver. All calls of the shim itself go through it: they never meet a hook or the gate.
pub struct Driver {
    library: AtomicPtr<c_void>,
    base: AtomicUsize,
    entries: [AtomicPtr<c_void>; Symbol::ALL.len()],
}

/// Marks an entry that the library does not have.
const ABSENT: *mut c_void = std::ptr::without_provenance_mut(1);

static DRIVER: Driver = Driver {
    library: AtomicPtr::new(null_mut()),
    base: AtomicUsize::new(0),
    entries: [const { AtomicPtr::new(null_mut()) }; Symbol::ALL.len()],
};

/// The real driver.
#[inline]
pub fn driver() -> &'static Driver {
    &DRIVER
}

impl Driver {
    /// The real function; `None` where this driver does not have it.
    #[inline]
    pub(crate) fn entry(&self, symbol: Symbol) -> Option<*mut c_void> {
        let entry = self.entries[symbol as usize].load(Ordering::Acquire);
        if entry.is_null() { self.find(symbol) } else { (entry != ABSENT).then_some(entry) }
    }

    /// Whether this driver has `symbol`.
    pub fn has(&self, symbol: Symbol) -> bool {
        self.entry(symbol).is_some()
    }

    /// Looks everything up. On a thread of the application's, with the gate open.
    pub(crate) fn bind(&self) {
        for symbol in Symbol::ALL {
            self.entry(*symbol);
        }
        // What an old driver does not have is not the application's error.
        // SAFETY: only clears what is said of this thread's last look-up.
        unsafe { libc::dlerror() };
    }

    #[cold]
    fn find(&self, symbol: Symbol) -> Option<*mut c_void> {
        let library = self.library();
        if library.is_null() {
            return None;
        }
        debug_assert!(
            !crate::start::is_engine(),
            "{} is looked up by a thread of ours, which waits for the loader's lock there",
            symbol.name()
        );
        // SAFETY: `library` is a handle that is never closed, the name a C string.
        let found = unsafe { resolve::real_dlsym(library, symbol.c_name().as_ptr()) };
        self.entries[symbol as usize].store(if found.is_null() { ABSENT } else { found }, Ordering::Release);
        (!found.is_null()).then_some(found)
    }

    /// The address that libcuda exports under `name`, which ends with a zero.
    pub(crate) fn export(&self, name: &[u8]) -> Option<*mut c_void> {
        let name = CStr::from_bytes_with_nul(name).ok()?;
        let library = self.library();
        if library.is_null() {
            return None;
        }
        // SAFETY: as in `find`.
        let found = unsafe { resolve::real_dlsym(library, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// The handle of libcuda: what the application loaded, else `libcuda.so.1` (an executable linked to it calls our
    /// exports without ever having asked `dlsym`). Null where there is none.
    fn library(&self) -> *mut c_void {
        static OPEN: Once = Once::new();
        let known = self.library.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        OPEN.call_once(|| {
            // SAFETY: the name is a C string; loading libcuda is what the application asked for by calling it.
            let handle = unsafe { resolve::real_dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_LAZY) };
            if !handle.is_null() {
                self.adopt(handle);
            }
        });
        self.library.load(Ordering::Acquire)
    }

    fn adopt(&self, handle: *mut c_void) {
        // SAFETY: the handle was opened just now.
        let init = unsafe { resolve::real_dlsym(handle, c"cuInit".as_ptr()) };
        if let Some(object) = Object::of(init)
            // First, so that whoever sees the library sees where it lies.
            && self.base.compare_exchange(0, object.base, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            self.library.store(handle, Ordering::Release);
        }
    }

    /// Whether `address`, an answer of the real `dlsym` to the application, lies in the libcuda that the shim stands
    /// in front of. The first libcuda that the application looks into becomes that one; a second copy, at another
    /// path, stays as it is: mixing the handles of two drivers would be worse than not swapping one of them.
    pub(crate) fn owns(&self, address: *const c_void) -> bool {
        let Some(object) = Object::of(address) else { return false };
        if !object.is_libcuda() {
            return false;
        }
        if self.library.load(Ordering::Acquire).is_null() {
            // SAFETY: the path is that of a loaded object; NOLOAD only adds a reference.
            let handle = unsafe { resolve::real_dlopen(object.path, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
            if !handle.is_null() {
                self.adopt(handle);
            }
        }
        self.base.load(Ordering::Acquire) == object.base
    }

    /// Whether `address` lies in a libcuda, this one or another.
    pub(crate) fn is_within(address: *const c_void) -> bool {
        Object::of(address).is_some_and(|object| object.is_libcuda())
    }

    #[cold]
    pub(crate) fn missing(symbol: Symbol) -> CUresult {
        if DRIVER.library().is_null() {
            crate::log::warning!(
                "{} was called, but there is no libcuda.so.1: is the NVIDIA driver installed in this container?",
                symbol.name()
            );
            return CUresult::CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
        }
        CUresult::CUDA_ERROR_NOT_SUPPORTED
    }

    /// The error's name, as the driver gives it.
    pub fn error_name(&self, code: CUresult) -> String {
        let mut name = std::ptr::null();
        // SAFETY: `name` is where the driver stores a pointer to a constant string of its own.
        let known = unsafe { self.cuGetErrorName(code.0, &raw mut name) };
        if known.ok() && !name.is_null() {
            // SAFETY: the driver's string constants end with a zero and are never freed.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            format!("error {}", code.0)
        }
    }
}

/// The loaded object that an address lies in.
pub(crate) struct Object {
    base: usize,
    path: *const libc::c_char,
}

impl Object {
    fn of(address: *const c_void) -> Option<Object> {
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
        let handle = unsafe { resolve::real_dlopen(object.path, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(handle)
    }

    /// Whether `address` lies in this library.
    pub(crate) fn is_ours(address: *const c_void) -> bool {
        let here = Object::of(Object::is_ours as *const c_void);
        here.zip(Object::of(address)).is_some_and(|(here, there)| here.base == there.base)
    }

    fn is_libcuda(&self) -> bool {
        // SAFETY: `dladdr` gave a C string that lives as long as the object is loaded, which it is while it is used.
        let path = unsafe { CStr::from_ptr(self.path) }.to_bytes();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        name.starts_with(b"libcuda.so")
    }
}
