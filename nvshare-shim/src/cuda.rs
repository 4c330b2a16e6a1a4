//! The driver's types as they cross the boundary. They are cudarc's, except where a value comes from outside that
//! cudarc spells as a closed Rust enum: a newer driver or application may send one it does not know, so results are
//! an open [`CUresult`], and enum arguments plain numbers ([`CEnum`]).

pub use cudarc::driver::sys;

/// A C enum passed by value.
pub type CEnum = u32;

/// What a driver call answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
#[must_use]
pub struct CUresult(pub u32);

#[expect(missing_docs, reason = "the header's names")]
impl CUresult {
    pub const CUDA_SUCCESS: CUresult = CUresult(0);
    pub const CUDA_ERROR_INVALID_VALUE: CUresult = CUresult(1);
    pub const CUDA_ERROR_OUT_OF_MEMORY: CUresult = CUresult(2);
    pub const CUDA_ERROR_NOT_INITIALIZED: CUresult = CUresult(3);
    pub const CUDA_ERROR_DEINITIALIZED: CUresult = CUresult(4);
    pub const CUDA_ERROR_INVALID_DEVICE: CUresult = CUresult(101);
    pub const CUDA_ERROR_INVALID_CONTEXT: CUresult = CUresult(201);
    pub const CUDA_ERROR_SHARED_OBJECT_INIT_FAILED: CUresult = CUresult(303);
    pub const CUDA_ERROR_INVALID_HANDLE: CUresult = CUresult(400);
    pub const CUDA_ERROR_NOT_FOUND: CUresult = CUresult(500);
    pub const CUDA_ERROR_NOT_READY: CUresult = CUresult(600);
    pub const CUDA_ERROR_ILLEGAL_ADDRESS: CUresult = CUresult(700);
    pub const CUDA_ERROR_NOT_PERMITTED: CUresult = CUresult(800);
    pub const CUDA_ERROR_NOT_SUPPORTED: CUresult = CUresult(801);
    pub const CUDA_ERROR_CONTEXT_IS_DESTROYED: CUresult = CUresult(709);
    pub const CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: CUresult = CUresult(900);
    pub const CUDA_ERROR_STREAM_CAPTURE_IMPLICIT: CUresult = CUresult(906);
    pub const CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD: CUresult = CUresult(908);
    pub const CUDA_ERROR_STREAM_DETACHED: CUresult = CUresult(917);
    pub const CUDA_ERROR_UNKNOWN: CUresult = CUresult(999);
}

impl CUresult {
    /// Whether it is `CUDA_SUCCESS`.
    #[inline]
    pub const fn ok(self) -> bool {
        self.0 == 0
    }

    /// `Ok` for `CUDA_SUCCESS`, the code otherwise.
    #[inline]
    pub const fn result(self) -> Result<(), CUresult> {
        if self.ok() { Ok(()) } else { Err(self) }
    }

    /// Whether it says that what was asked about exists no more, or the whole driver.
    pub const fn is_gone(self) -> bool {
        matches!(
            self,
            Self::CUDA_ERROR_DEINITIALIZED
                | Self::CUDA_ERROR_INVALID_CONTEXT
                | Self::CUDA_ERROR_INVALID_HANDLE
                | Self::CUDA_ERROR_CONTEXT_IS_DESTROYED
                | Self::CUDA_ERROR_STREAM_DETACHED
        )
    }

    /// Whether the context, and so the process, is beyond help: the header says of these codes that "the process must
    /// be terminated and relaunched", or that the context cannot be used any more.
    pub const fn is_sticky(self) -> bool {
        matches!(self.0, 214 | 220 | 226 | 700 | 702 | 710 | 714..=719)
    }

    /// Whether after this error no call of this process succeeds any more.
    pub const fn is_final(self) -> bool {
        self.is_sticky() || self.0 == Self::CUDA_ERROR_DEINITIALIZED.0
    }
}

/// `CUmemLocation` passed by value, with its type as a number.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Location {
    /// `CUmemLocationType`.
    pub kind: CEnum,
    /// What it means depends on `kind`.
    pub id: i32,
}

const _: () = assert!(size_of::<Location>() == size_of::<sys::CUmemLocation>());

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
pub const CAPTURE_MODE_RELAXED: CEnum = 2;
/// `CU_STREAM_CAPTURE_STATUS_NONE`.
pub const CAPTURE_STATUS_NONE: CEnum = 0;
/// `CU_EVENT_DISABLE_TIMING`.
pub const EVENT_DISABLE_TIMING: u32 = 2;
/// `CU_STREAM_LEGACY`: the default stream that all threads share.
pub const STREAM_LEGACY: sys::CUstream = std::ptr::without_provenance_mut(1);
/// `CU_STREAM_PER_THREAD`: the calling thread's own default stream.
pub const STREAM_PER_THREAD: sys::CUstream = std::ptr::without_provenance_mut(2);
