//! Calls that are interposed only so that they are counted.

use super::Bare;
use crate::cuda::CUresult;

pub(crate) unsafe fn counted<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    bare.call()
}
