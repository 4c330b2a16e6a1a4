//! Faults on demand (`NVSHARE_SIM_FAULTS`): at the call, or when the work is executed.

use cudarc::driver::sys::CUresult;
pub(crate) use nvshare_sim_card::{Effect, Point};

use crate::call::Outcome;
use crate::device::card;
use crate::timeline::Timeline;
use crate::work::Work;

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

/// `work` is being submitted: the call fails for lack of memory, or the effect strikes when it is executed.
pub(crate) fn at_submission(work: &Work) -> Outcome<Option<Effect>> {
    let point = match work {
        Work::Kernel(_) => Point::Launch,
        Work::Transfer(_) | Work::Fill(_) => Point::Copy,
        _ => return Ok(None),
    };
    match card().fault(point) {
        Some(Effect::OutOfMemory) => Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        effect => Ok(effect),
    }
}

/// The effect strikes: the work fails for good, takes longer, or does not end as long as its context lives.
pub(crate) fn strike(effect: Option<Effect>, timeline: &mut Timeline<'_>) -> Outcome {
    match effect {
        None | Some(Effect::OutOfMemory) => Ok(()),
        Some(Effect::Fail) => Err(CUresult::CUDA_ERROR_LAUNCH_FAILED),
        Some(Effect::Slow(time)) => timeline.spin(time.as_nanos() as u64),
        Some(Effect::Hang) => timeline.spin(u64::MAX / 2),
    }
}
