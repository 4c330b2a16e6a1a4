//! Addresses between allocations: behind the end of one, or freed, but inside what the engine has mapped. To the driver they
//! are memory like any other; to the application there is nothing, and it gets the answers for that (an H200's).

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use crate::cuda::sys::CUdeviceptr;
use crate::cuda::{CEnum, CUresult};
use crate::{allocation, device, life};

/// Whether an address lies in what is mapped for allocations, and in none of them.
pub(super) fn is(at: CUdeviceptr) -> bool {
    life::active()
        && allocation::describe(at).is_none()
        && device::all().iter().any(|device| {
            let state = device.state();
            state.space.covers(at) || state.homes.region(at).is_some()
        })
}

/// How an attribute answers in a list.
#[derive(Clone, Copy)]
enum Nothing {
    Byte,
    Word(i32),
    Long(u64),
    /// Left as it was: the range, of which there is none.
    Untouched,
}

fn nothing(attribute: CEnum, at: CUdeviceptr) -> Option<Nothing> {
    Some(match attribute {
        1 | 3 | 7 | 14 | 17..=20 => Nothing::Long(0),
        4 => Nothing::Long(at),
        2 | 16 => Nothing::Word(0),
        9 => Nothing::Word(-2),
        6 | 8 | 10 | 13 | 15 | 21 => Nothing::Byte,
        11 | 12 => Nothing::Untouched,
        _ => return None,
    })
}

/// `cuPointerGetAttributes` of such an address.
///
/// # Safety
/// `wanted` and `data` are null or of `count` elements, each of `data` the place of its attribute.
pub(super) unsafe fn attributes(
    count: u32,
    wanted: *mut CEnum,
    data: *mut *mut c_void,
    at: CUdeviceptr,
) -> CUresult {
    if wanted.is_null() || data.is_null() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let mut answers = Vec::with_capacity(count as usize);
    for index in 0..count as usize {
        // SAFETY: within both arrays.
        let (wanted, place) = unsafe { (wanted.add(index).read(), data.add(index).read()) };
        let Some(answer) = nothing(wanted, at).filter(|_| !place.is_null()) else {
            return CUresult::CUDA_ERROR_INVALID_VALUE;
        };
        answers.push((answer, place));
    }
    for (answer, place) in answers {
        // SAFETY: the application's place for this attribute, of the width that the header gives it.
        unsafe {
            match answer {
                Nothing::Byte => place.cast::<u8>().write(0),
                Nothing::Word(value) => place.cast::<i32>().write(value),
                Nothing::Long(value) => place.cast::<u64>().write(value),
                Nothing::Untouched => {}
            }
        }
    }
    CUresult::CUDA_SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gets_zeros_the_address_and_no_range() {
        let (mut wanted, mut values): ([CEnum; 4], [u64; 4]) = ([2, 4, 9, 12], [0xee; 4]);
        let mut data = values.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        // SAFETY: four of each, all places eight bytes.
        let result = unsafe { attributes(4, wanted.as_mut_ptr(), data.as_mut_ptr(), 0x7000) };
        assert_eq!(result, CUresult::CUDA_SUCCESS);
        assert_eq!(values, [0, 0x7000, 0xffff_fffe, 0xee]);
        wanted[0] = 5;
        // SAFETY: as above.
        let result = unsafe { attributes(4, wanted.as_mut_ptr(), data.as_mut_ptr(), 0x7000) };
        assert_eq!(result, CUresult::CUDA_ERROR_INVALID_VALUE, "tokens cannot be asked for in a list");
    }
}
