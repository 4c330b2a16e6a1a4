//! What an exported function is called with, typed: places for answers, texts, lists.
//!
//! Each of these types stands in a signature of `export!` where C has a pointer (or the length of what is behind one). Its
//! field is private, and nothing here makes one: only a caller in C does, by calling the function. So one fact, the contract
//! of NVML, makes all of this sound: **a pointer is null, or valid for what its type says**, during the call, and what has a
//! length has that of the same call.

#![expect(unsafe_code, reason = "pointers that the caller of a function of NVML vouches for")]

use std::ffi::{CStr, c_char, c_uint};

use crate::{Outcome, Return};

const INVALID: Return = Return::InvalidArgument;

/// A place for an answer, which must be there.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// The answer.
    pub(crate) fn set(self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so valid for a write, by the contract of NVML.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// A place for a structure that begins with its version, which the caller has set.
#[repr(transparent)]
pub(crate) struct Versioned<T>(*mut T);

impl<T> Versioned<T> {
    /// Which version the caller has room for. With another one it may be shorter than a `T`.
    fn version(&self) -> Result<c_uint, Return> {
        // SAFETY: null, or at least the version is there, by the contract of NVML.
        unsafe { self.0.cast::<c_uint>().as_ref() }.copied().ok_or(INVALID)
    }

    /// The answer, where the version is that of `T`.
    pub(crate) fn set(self, version: c_uint, value: T) -> Outcome {
        if self.version()? != version {
            return Err(Return::ArgumentVersionMismatch);
        }
        Out(self.0).set(value)
    }
}

/// A text of the caller's.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    /// The text, which must be there.
    pub(crate) fn get(&self) -> Result<&str, Return> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so a C string, by the contract of NVML.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| INVALID)
    }
}

/// How long the buffer of the same call is.
#[repr(transparent)]
pub(crate) struct Length(c_uint);

/// The caller's buffer for a text.
#[repr(transparent)]
pub(crate) struct Buffer(*mut c_char);

impl Buffer {
    /// The text and its final zero.
    pub(crate) fn set(self, length: Length, text: &str) -> Outcome {
        if self.0.is_null() {
            return Err(INVALID);
        }
        if text.len() >= length.0 as usize {
            return Err(Return::InsufficientSize);
        }
        // SAFETY: text and zero fit, by the check above and the contract of NVML.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), self.0, text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// How much room there is in the list of the same call, and where the answer goes how many there are.
#[repr(transparent)]
pub(crate) struct Room(*mut c_uint);

/// A list that the caller wants.
#[repr(transparent)]
pub(crate) struct Places<T>(*mut T);

impl<T> Places<T> {
    /// Fills the list, or says how long it has to be.
    pub(crate) fn fill(self, room: Room, values: impl ExactSizeIterator<Item = T>) -> Outcome {
        // SAFETY: null or the caller's own, by the contract of NVML.
        let room = unsafe { room.0.as_mut() }.ok_or(INVALID)?;
        let before = std::mem::replace(room, values.len() as c_uint) as usize;
        if values.len() > before {
            return Err(Return::InsufficientSize);
        }
        if values.len() > 0 && self.0.is_null() {
            return Err(INVALID);
        }
        for (index, value) in values.enumerate() {
            // SAFETY: there is room for all of them, as was checked.
            unsafe { self.0.add(index).write(value) };
        }
        Ok(())
    }
}
