//! What an exported function is called with, typed: places for answers, descriptions, lists, texts.
//!
//! Each of these types stands in a signature of `export!` where C has a pointer (or a number that belongs to one). Its field
//! is private, and nothing here makes one of a pointer: only a caller in C does, by calling the function. So one fact, the
//! contract of the driver API, makes all of this sound: **a pointer is null, or valid for what its type says**, during the call.
//! A function has one [`Count`] or [`Room`] at most, and it is that of its lists.
//!
//! Here: what is by itself; `lists`: what has a length; `arguments`: what a kernel is launched with.

#![expect(unsafe_code, reason = "pointers that the caller of a driver function vouches for")]

mod arguments;
mod lists;

use std::ffi::{CStr, c_char};

use cudarc::driver::sys::CUresult;

pub(crate) use self::arguments::{Arguments, Extra};
pub(crate) use self::lists::{Count, List, Places, Room};
use crate::call::Outcome;

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// A place for an answer, which must be there.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Whether it is not there, for those who ask before they begin.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Refuses the call at once where it is not there.
    pub(crate) fn needed(&self) -> Outcome {
        if self.is_null() { Err(INVALID) } else { Ok(()) }
    }

    /// The answer.
    pub(crate) fn set(self, value: T) -> Outcome {
        self.needed()?;
        // SAFETY: not null, so valid for a write, by the contract of the driver API.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// A place for an answer that not everybody wants.
#[repr(transparent)]
pub(crate) struct Maybe<T>(*mut T);

impl<T> Maybe<T> {
    /// What older variants of a function lack.
    pub(crate) const NONE: Maybe<T> = Maybe(std::ptr::null_mut());

    /// Whether somebody wants it.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The answer, or nothing.
    pub(crate) fn set(&self, value: T) {
        if !self.is_null() {
            // SAFETY: not null, so valid for a write, by the contract of the driver API.
            unsafe { self.0.write(value) };
        }
    }
}

/// Something that the caller describes: a `T` of plain numbers, pointers and handles, so that all bits are a value.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T> In<T> {
    /// What was passed, where null is nothing.
    pub(crate) fn given(&self) -> Option<&T> {
        // SAFETY: null or readable during the call, by the contract of the driver API.
        unsafe { self.0.as_ref() }
    }

    /// What was passed, where it must be there.
    pub(crate) fn get(&self) -> Outcome<&T> {
        self.given().ok_or(INVALID)
    }
}

/// Something that the caller describes, and where the answer goes as well. As [`In`].
#[repr(transparent)]
pub(crate) struct InOut<T>(*mut T);

impl<T> InOut<T> {
    /// What was passed, which must be there.
    pub(crate) fn get(&mut self) -> Outcome<&mut T> {
        // SAFETY: null or the caller's own during the call, by the contract of the driver API.
        unsafe { self.0.as_mut() }.ok_or(INVALID)
    }
}

/// A text of the caller's.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    /// The text, which must be there.
    pub(crate) fn get(&self) -> Outcome<&CStr> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so a C string, by the contract of the driver API.
        Ok(unsafe { CStr::from_ptr(self.0) })
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null_mut;

    use super::*;

    #[test]
    fn an_answer_goes_where_the_caller_wants_it_and_one_that_must_be_told_is_refused_where_it_cannot() {
        let (mut needed, mut wanted) = (0, 0);
        assert_eq!(Out(&raw mut needed).set(7), Ok(()));
        Maybe(&raw mut wanted).set(8);
        assert_eq!((needed, wanted), (7, 8));
        let missing: Out<i32> = Out(null_mut());
        assert!(missing.is_null());
        assert_eq!(missing.needed(), Err(INVALID));
        assert_eq!(missing.set(7), Err(INVALID));
        Maybe::NONE.set(8);
    }
}
