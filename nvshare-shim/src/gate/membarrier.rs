//! membarrier(2), the private expedited kind (Linux 4.14): every running thread of the process executes a barrier.

#![expect(unsafe_code, reason = "a thread's slot outlives it, and the kernel is asked for barriers")]

const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn call(command: libc::c_int) -> bool {
    // SAFETY: these commands take no address and change nothing but the ordering of memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

pub(super) fn register() -> bool {
    call(REGISTER_PRIVATE_EXPEDITED) && call(PRIVATE_EXPEDITED)
}

/// `false`: the kernel does not let us any more, since a filter of system calls came after [`register`].
pub(super) fn issue() -> bool {
    call(PRIVATE_EXPEDITED)
}
