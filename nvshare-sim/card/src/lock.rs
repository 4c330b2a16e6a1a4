//! The lock of the control block: a mutex in shared memory that survives the death of its holder.

#![expect(unsafe_code, reason = "a mutex of the C library, which processes share")]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Lives in shared memory only; made once by [`SharedMutex::init`].
#[repr(C)]
pub(crate) struct SharedMutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a process-shared mutex is made to be used by any thread of any process.
unsafe impl Sync for SharedMutex {}

/// Held until dropped.
pub(crate) struct Guard<'a> {
    mutex: &'a SharedMutex,
    /// The last holder died with the lock: what it guards may be half changed.
    pub(crate) inherited: bool,
    /// The thread that locked must unlock.
    not_send: PhantomData<*const ()>,
}

impl SharedMutex {
    /// Makes the mutex in place.
    ///
    /// # Safety
    /// `place` is writable shared memory that no thread uses as a mutex yet.
    pub(crate) unsafe fn init(place: *mut SharedMutex) {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: the attributes are initialised before use, `place` is valid by this function's contract, and
        // `UnsafeCell` has the layout of what it holds.
        unsafe {
            libc::pthread_mutexattr_init(attributes.as_mut_ptr());
            libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
            let made = libc::pthread_mutex_init(place.cast(), attributes.as_ptr());
            assert_eq!(made, 0, "a robust process-shared mutex");
            libc::pthread_mutexattr_destroy(attributes.as_mut_ptr());
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        // SAFETY: the mutex was made before the control block was published.
        let answer = unsafe { libc::pthread_mutex_lock(self.0.get()) };
        match answer {
            0 => Guard { mutex: self, inherited: false, not_send: PhantomData },
            libc::EOWNERDEAD => {
                // SAFETY: this thread holds the mutex, as EOWNERDEAD says.
                unsafe { libc::pthread_mutex_consistent(self.0.get()) };
                Guard { mutex: self, inherited: true, not_send: PhantomData }
            }
            error => panic!(
                "the simulated card's lock is broken (error {error}): end the processes that use it and remove its \
                 directory"
            ),
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: a guard exists only while its thread holds the mutex (it is not Send).
        unsafe { libc::pthread_mutex_unlock(self.mutex.0.get()) };
    }
}
