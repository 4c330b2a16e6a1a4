//! What a kernel is launched with, in one of two ways.

use std::ffi::c_void;

use super::INVALID;
use crate::call::Outcome;

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

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::*;

    #[test]
    fn arguments_are_found_by_their_index_or_in_one_buffer() {
        let (one, two) = (0x0102_u16, 5_u8);
        let pointers = [(&raw const one).cast(), (&raw const two).cast(), null()];
        let each = Arguments(pointers.as_ptr());
        assert_eq!(each.get(0, 2), Ok(&[2, 1][..]));
        assert_eq!(each.get(1, 1), Ok(&[5][..]));
        assert_eq!(each.get(2, 1), Err(INVALID), "one that is missing");
        assert_eq!(Arguments(null()).get(0, 2), Err(INVALID));

        let (buffer, bytes) = ([1_u8, 2, 3], 2_usize);
        let at = |key: usize| key as *const c_void;
        let (pointer, size) = ((&raw const buffer).cast(), (&raw const bytes).cast());
        let told = |list: &[*const c_void]| Extra(list.as_ptr()).buffer().map(<[u8]>::to_vec);
        assert_eq!(told(&[at(1), pointer, at(2), size, null()]), Ok(vec![1, 2]));
        assert_eq!(told(&[at(2), size, at(1), pointer, null()]), Ok(vec![1, 2]), "in any order");
        assert_eq!(told(&[at(1), pointer, null()]), Err(INVALID), "without its size");
        assert_eq!(told(&[at(9), pointer, null()]), Err(INVALID), "an unknown key");
    }
}
