//! Stands in for the engine until it lands: every allocation is passed through.

pub mod memory {
    //! See the engine's `memory`.
    use crate::cuda::CUresult;
    use crate::cuda::sys::{CUcontext, CUdeviceptr};

    /// What is known of an allocation.
    #[derive(Clone, Copy, Debug)]
    pub struct Described {
        /// Its first byte.
        pub start: CUdeviceptr,
        /// Its size, as asked for.
        pub bytes: u64,
        /// The context it was made in.
        pub context: CUcontext,
        /// The ordinal of its device.
        pub device: i32,
        /// Whether all of it is resident.
        pub resident: bool,
    }

    /// Allocates on the device of the current context.
    pub fn allocate(bytes: usize) -> Result<CUdeviceptr, CUresult> {
        let mut at = 0;
        // SAFETY: `at` is where the driver stores the address.
        unsafe { crate::driver::driver().cuMemAlloc_v2(&raw mut at, bytes) }.result().map(|()| at)
    }

    /// Frees; `None`: not ours.
    pub fn free(_: CUdeviceptr) -> Option<CUresult> {
        None
    }

    /// Free and total bytes.
    pub fn info() -> Option<(usize, usize)> {
        None
    }

    /// The allocation that an address lies in.
    pub fn describe(_: CUdeviceptr) -> Option<Described> {
        None
    }

    /// Memory that cannot be moved was taken or given back.
    pub fn pass_through(_: i32, _: &'static str, _: i64) {}

    /// The context is about to be destroyed.
    pub fn on_context_destroyed(_: CUcontext) {}
}

pub mod swap {
    //! See the engine's `swap`.
    use crate::cuda::CUresult;

    /// A call returned a sticky error.
    pub fn on_device_error(_: CUresult) {}

    /// Whether that ever happened.
    pub fn is_dead() -> bool {
        false
    }
}

pub mod link {
    //! See the engine's `link`.

    /// Connects.
    pub fn start() {}

    /// A thread waits at the gate.
    pub fn want_to_run() {}

    /// Asks for room for the driver's own memory; waits for the answer, at most a second. Whether to try again.
    pub fn want_room() -> bool {
        false
    }
}
