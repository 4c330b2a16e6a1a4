//! Calls that are interposed only so that they are counted.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::Bare;
use crate::cuda::CUresult;

pub(crate) unsafe fn counted<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    bare.call()
}
