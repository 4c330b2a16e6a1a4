//! Faults on demand (`NVSHARE_SIM_FAULTS`): at the call. What strikes work when it is executed: `execution`.

use cudarc::driver::sys::CUresult;
pub(crate) use nvshare_sim_card::{Effect, Point};

use crate::call::Outcome;
use crate::device::card;

/// A call reached `point`: out of memory or failure, if asked for, are its answer.
pub(crate) fn at_call(point: Point) -> Outcome {
    answer(card().fault(point))
}

/// The function is called, with whatever arguments.
pub(crate) fn of_call(name: &str) -> Outcome {
    answer(card().fault_of_call(name))
}

fn answer(effect: Option<Effect>) -> Outcome {
    match effect {
        None => Ok(()),
        Some(Effect::OutOfMemory) => Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        Some(Effect::Fail) => Err(CUresult::CUDA_ERROR_UNKNOWN),
        Some(Effect::Slow(time)) => {
            std::thread::sleep(time);
            Ok(())
        }
        Some(Effect::Hang) => loop {
            std::thread::park();
        },
    }
}
