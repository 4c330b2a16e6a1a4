//! Lists: those that the caller passes, and those that it wants; and how long they are.

use std::ffi::{c_int, c_uint};

use super::{INVALID, Out};
use crate::call::Outcome;

/// How long the lists of the same call are.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Count<N = usize>(N);

impl Count {
    /// The number.
    pub(crate) fn get(self) -> usize {
        self.0
    }
}

impl From<Count<c_uint>> for Count {
    fn from(count: Count<c_uint>) -> Count {
        Count(count.0 as usize)
    }
}

impl From<Count<c_int>> for Count {
    fn from(count: Count<c_int>) -> Count {
        Count(count.0.max(0) as usize)
    }
}

/// How much room there is in the lists of the same call, and where the answer goes how many there are.
#[repr(transparent)]
pub(crate) struct Room<N = usize>(*mut N);

impl<N: Copy> Room<N> {
    /// How much room there is.
    pub(crate) fn count(&self) -> Outcome<Count<N>> {
        // SAFETY: null or readable during the call, by the contract of the driver API.
        unsafe { self.0.as_ref() }.map(|count| Count(*count)).ok_or(INVALID)
    }

    /// How many there are.
    pub(crate) fn set(self, number: N) -> Outcome {
        Out(self.0).set(number)
    }
}

/// A list that the caller passes, as long as a [`Count`] says. Its elements are as for [`In`](super::In).
#[repr(transparent)]
pub(crate) struct List<T>(*const T);

impl<T> List<T> {
    /// Refuses the call at once where it is not there, though it be empty.
    pub(crate) fn needed(&self) -> Outcome {
        if self.0.is_null() { Err(INVALID) } else { Ok(()) }
    }

    /// Its elements. An empty one need not be there.
    pub(crate) fn of(&self, count: impl Into<Count>) -> Outcome<&[T]> {
        match count.into().get() {
            0 => Ok(&[]),
            count => {
                self.needed()?;
                // SAFETY: not null, so as many as the caller says, by the contract of the driver API.
                Ok(unsafe { std::slice::from_raw_parts(self.0, count) })
            }
        }
    }
}

/// A list that the caller wants, with as many places as a [`Count`] says.
#[repr(transparent)]
pub(crate) struct Places<T>(*mut T);

impl<T> Places<T> {
    /// Whether it is not there.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// As many of the values as there are places for. It must be there if there is one.
    pub(crate) fn fill(
        &self,
        count: impl Into<Count>,
        values: impl IntoIterator<Item = Outcome<T>>,
    ) -> Outcome {
        for (index, value) in values.into_iter().take(count.into().get()).enumerate() {
            let value = value?;
            if self.is_null() {
                return Err(INVALID);
            }
            // SAFETY: not null, so as many places as the caller says, by the contract of the driver API.
            unsafe { self.0.add(index).write(value) };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use cudarc::driver::sys::CUresult;

    use super::*;

    /// A list of the caller's, and how long it says it is.
    fn list<T>(elements: &[T]) -> (List<T>, Count) {
        (List(elements.as_ptr()), Count(elements.len()))
    }

    #[test]
    fn a_list_must_be_there_unless_it_is_empty() {
        let (given, count) = list(&[3_u64, 4]);
        assert_eq!(given.of(count), Ok(&[3, 4][..]));
        let missing: List<u64> = List(null());
        assert_eq!(missing.of(count), Err(INVALID));
        assert_eq!(missing.of(Count(0_usize)), Ok(&[][..]));
        assert_eq!(missing.needed(), Err(INVALID));
        assert_eq!(given.of(Count(-1 as c_int)), Ok(&[][..]));
    }

    #[test]
    fn a_list_is_filled_as_far_as_there_is_room_and_up_to_an_error() {
        let (mut places, mut room) = ([0_u32; 4], 3_usize);
        let to = Places(places.as_mut_ptr());
        let room_at = Room(&raw mut room);
        let count = room_at.count().expect("a room");
        assert_eq!(to.fill(count, (1..).map(Ok)), Ok(()));
        assert_eq!(
            to.fill(count, [Ok(9), Err(CUresult::CUDA_ERROR_NOT_FOUND)]),
            Err(CUresult::CUDA_ERROR_NOT_FOUND)
        );
        assert_eq!(room_at.set(5), Ok(()));
        assert_eq!((places, room), ([9, 2, 3, 0], 5));
        let missing: Places<u32> = Places(null_mut());
        assert_eq!(missing.fill(count, [Ok(1)]), Err(INVALID));
        assert_eq!(missing.fill(count, []), Ok(()), "nothing to tell needs no place");
    }
}
