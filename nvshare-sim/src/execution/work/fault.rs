//! Faults on demand that strike work: when it is submitted, or when it is executed.

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::{Effect, Point};

use super::Work;
use crate::call::Outcome;
use crate::device::card;
use crate::timeline::Timeline;

/// `work` is being submitted: the call fails for lack of memory, or the effect strikes when it is executed.
pub(super) fn at_submission(work: &Work) -> Outcome<Option<Effect>> {
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
pub(super) fn strike(effect: Option<Effect>, timeline: &mut Timeline<'_>) -> Outcome {
    match effect {
        None | Some(Effect::OutOfMemory) => Ok(()),
        Some(Effect::Fail) => Err(CUresult::CUDA_ERROR_LAUNCH_FAILED),
        Some(Effect::Slow(time)) => timeline.spin(time.as_nanos() as u64),
        Some(Effect::Hang) => timeline.spin(u64::MAX / 2),
    }
}
