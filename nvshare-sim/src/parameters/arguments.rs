//! What a kernel is launched with, in one of two ways.

use std::ffi::c_void;

use super::INVALID;
use crate::export::Outcome;

/// The arguments of a launch: a pointer for each parameter of the function that the same call names, to as many bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Arguments(*const *const c_void);

impl Arguments {
    /// Whether there are none.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The argument for parameter `index` of the function, which has this size.
    pub(crate) fn get(&self, index: usize, size: usize) -> Outcome<&[u8]> {
        if self.is_null() {
            return Err(INVALID);
        }
        // SAFETY: there is one for each parameter, by the contract of the driver API.
        let value = unsafe { self.0.add(index).read() };
        if value.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so as long as its parameter.
        Ok(unsafe { std::slice::from_raw_parts(value.cast(), size) })
    }
}

/// The other way to pass arguments: a list of keys and values that ends with `CU_LAUNCH_PARAM_END`, about one buffer.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Extra(*const *const c_void);

impl Extra {
    /// What some functions lack.
    pub(crate) const NONE: Extra = Extra(std::ptr::null());

    /// Whether it is not there.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The buffer.
    pub(crate) fn buffer(&self) -> Outcome<&[u8]> {
        const END: usize = 0;
        const POINTER: usize = 1;
        const SIZE: usize = 2;
        let (mut pointer, mut size, mut at) = (std::ptr::null::<u8>(), None, 0);
        loop {
            // SAFETY: the list has not ended yet, so the key and what belongs to it are there.
            let key = unsafe { self.0.add(at).read() } as usize;
            if key == END {
                break;
            }
            // SAFETY: as above.
            let value = unsafe { self.0.add(at + 1).read() };
            match key {
                POINTER => pointer = value.cast(),
                // SAFETY: this key's value points to a size_t.
                SIZE => size = Some(unsafe { value.cast::<usize>().read() }),
                _ => return Err(INVALID),
            }
            at += 2;
        }
        match (pointer.is_null(), size) {
            // SAFETY: the caller's buffer of the caller's size.
            (false, Some(size)) => Ok(unsafe { std::slice::from_raw_parts(pointer, size) }),
            _ => Err(INVALID),
        }
    }
}
