//! Every function of the driver API that the simulator does not have: it answers `CUDA_ERROR_NOT_SUPPORTED`, and says so
//! once.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;
use crate::export::export;

fn refuse(name: &str, said: &AtomicBool) -> Outcome {
    if !said.swap(true, Ordering::Relaxed) {
        eprintln!("nvshare-sim: {name} is not simulated: CUDA_ERROR_NOT_SUPPORTED");
    }
    Err(CUresult::CUDA_ERROR_NOT_SUPPORTED)
}

macro_rules! stubs {
    ($($name:ident)*) => {
        export! {
            $(@early fn $name() |cx| {
                static SAID: AtomicBool = AtomicBool::new(false);
                refuse(cx.name, &SAID)
            })*
        }
    };
}

include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
