//! The real driver's entry points, found by the real `dlsym` in the libcuda that the application uses: all of them before the
//! shim takes up work, because a look-up takes the loader's lock, which a thread of the application may hold while it waits
//! at the gate; before that each at its first use. Calls of probed functions are counted before they are made. Which functions
//! there are is said in [`functions`](mod@functions).
//!
//! A process may have a stand-in instead: a library that is no libcuda and has its functions, which the program was linked to.
//! Where no libcuda is there when the driver is first called, but such a library is behind us, all calls go to that, as they
//! would without us, and nothing is managed. It may be a wrapper, which looks libcuda's functions up when it is called, as an
//! interposer does: with that look-up we are in front of libcuda, as we are in front of a libcuda that is there already. (One
//! that a plugin brings along, in a scope of its own, is not met.)

#![expect(unsafe_code, reason = "the loader's and the driver's functions are found and called")]

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

pub(crate) mod functions;
pub(crate) mod object;
pub(crate) mod real;
mod symbols;
pub(crate) mod waits;

pub(crate) use self::functions::functions;
use self::object::Object;
use self::real::{real_dlopen, real_dlsym};
pub use self::symbols::Symbol;
pub(crate) use self::symbols::{probed, real};
use crate::cuda::CUresult;

/// The real driver. All calls of the shim itself go through it: they never meet a hook or the gate.
pub struct Driver {
    library: AtomicPtr<c_void>,
    base: AtomicUsize,
    entries: [AtomicPtr<c_void>; Symbol::ALL.len()],
    /// Where the stand-in lies; zero: there is none.
    stand_in: AtomicUsize,
    /// Its functions.
    instead: [AtomicPtr<c_void>; Symbol::ALL.len()],
}

/// The name that everybody knows the driver by.
const LIBCUDA: &CStr = c"libcuda.so.1";

/// Marks an entry that the library does not have.
const ABSENT: *mut c_void = std::ptr::without_provenance_mut(1);

static DRIVER: Driver = Driver {
    library: AtomicPtr::new(null_mut()),
    base: AtomicUsize::new(0),
    entries: [const { AtomicPtr::new(null_mut()) }; Symbol::ALL.len()],
    stand_in: AtomicUsize::new(0),
    instead: [const { AtomicPtr::new(null_mut()) }; Symbol::ALL.len()],
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
            return self.instead(symbol);
        }
        debug_assert!(
            !crate::life::is_engine(),
            "{} is looked up by a thread of ours, which waits for the loader's lock there",
            symbol.name()
        );
        // SAFETY: `library` is a handle that is never closed, the name a C string.
        let found = unsafe { real_dlsym(library, symbol.c_name().as_ptr()) };
        self.entries[symbol as usize].store(if found.is_null() { ABSENT } else { found }, Ordering::Release);
        (!found.is_null()).then_some(found)
    }

    /// The stand-in's function.
    fn instead(&self, symbol: Symbol) -> Option<*mut c_void> {
        if self.stand_in.load(Ordering::Acquire) == 0 {
            return None;
        }
        let entry = &self.instead[symbol as usize];
        let mut known = entry.load(Ordering::Acquire);
        if known.is_null() {
            // SAFETY: the name is a C string.
            known = unsafe { real_dlsym(libc::RTLD_NEXT, symbol.c_name().as_ptr()) };
            known = if Object::is_code(known) { known } else { ABSENT };
            entry.store(known, Ordering::Release);
        }
        (known != ABSENT).then_some(known)
    }

    /// Whether the calls of this process go to a stand-in for the driver.
    pub(crate) fn is_stand_in(&self) -> bool {
        self.library().is_null() && self.stand_in.load(Ordering::Acquire) != 0
    }

    /// The address that libcuda exports under `name`, which ends with a zero.
    pub(crate) fn export(&self, name: &[u8]) -> Option<*mut c_void> {
        let name = CStr::from_bytes_with_nul(name).ok()?;
        let library = self.library();
        if library.is_null() {
            return None;
        }
        // SAFETY: as in `find`.
        let found = unsafe { real_dlsym(library, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// The handle of libcuda: what the application loaded or is linked to (then it calls our exports without ever having asked
    /// `dlsym`), else `libcuda.so.1`. Null where there is none, or a stand-in.
    fn library(&self) -> *mut c_void {
        static OPEN: Once = Once::new();
        let known = self.library.load(Ordering::Acquire);
        if !known.is_null() {
            return known;
        }
        OPEN.call_once(|| {
            // SAFETY: names and paths are C strings, NOLOAD only adds a reference; and loading libcuda is what the application
            // asked for by calling it.
            let handle = unsafe {
                let next = real_dlsym(libc::RTLD_NEXT, c"cuInit".as_ptr());
                let behind = Object::of(next).filter(|_| Object::is_code(next));
                let open = |path, more| real_dlopen(path, libc::RTLD_LAZY | more);
                match behind {
                    // The one that the program is linked to.
                    Some(object) if object.is_libcuda() => open(object.path, libc::RTLD_NOLOAD),
                    Some(object) => {
                        let there = open(LIBCUDA.as_ptr(), libc::RTLD_NOLOAD);
                        if there.is_null() {
                            self.stand_in.store(object.base, Ordering::Release);
                        }
                        there
                    }
                    None => open(LIBCUDA.as_ptr(), 0),
                }
            };
            if !handle.is_null() {
                self.adopt(handle);
            }
        });
        self.library.load(Ordering::Acquire)
    }

    fn adopt(&self, handle: *mut c_void) {
        // SAFETY: the handle was opened just now.
        let init = unsafe { real_dlsym(handle, c"cuInit".as_ptr()) };
        if let Some(object) = Object::of(init)
            // First, so that whoever sees the library sees where it lies.
            && self.base.compare_exchange(0, object.base, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            self.library.store(handle, Ordering::Release);
        }
    }

    /// Whether `address`, an answer of the real `dlsym` to the application, lies in the libcuda that the shim stands
    /// in front of. The first libcuda that the application looks into becomes that one; a second copy, at another
    /// path, stays as it is: mixing the handles of two drivers would be worse than not swapping one of them. So does one
    /// beside a stand-in, unless that itself looks: at `asked_from`.
    pub(crate) fn owns(&self, address: *const c_void, asked_from: *const c_void) -> bool {
        let Some(object) = Object::of(address) else { return false };
        if !object.is_libcuda() {
            return false;
        }
        if self.library.load(Ordering::Acquire).is_null() {
            let stand_in = self.stand_in.load(Ordering::Acquire);
            if stand_in != 0 && Object::of(asked_from).is_none_or(|asking| asking.base != stand_in) {
                return false;
            }
            // SAFETY: the path is that of a loaded object; NOLOAD only adds a reference.
            let handle = unsafe { real_dlopen(object.path, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
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
        if DRIVER.is_stand_in() {
            return CUresult::CUDA_ERROR_NOT_SUPPORTED;
        }
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
