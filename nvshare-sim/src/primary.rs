//! Primary contexts: one for each device, counted by those who retain it.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;

use crate::context::Context;
use crate::export::Outcome;

#[derive(Default)]
struct Primary {
    context: Option<Arc<Context>>,
    retained: usize,
    flags: u32,
}

static PRIMARIES: LazyLock<Mutex<Vec<Primary>>> = LazyLock::new(|| {
    let mut primaries = Vec::new();
    primaries.resize_with(crate::device::count(), Primary::default);
    Mutex::new(primaries)
});

fn with<T>(device: usize, act: impl FnOnce(&mut Primary) -> T) -> T {
    let mut primaries = PRIMARIES.lock().unwrap_or_else(PoisonError::into_inner);
    act(&mut primaries[device])
}

/// The primary context, made if it is not there.
pub(crate) fn retain(device: usize) -> Outcome<Arc<Context>> {
    with(device, |primary| {
        let context = match &primary.context {
            Some(context) => Arc::clone(context),
            None => Context::create(device, primary.flags, true)?,
        };
        primary.context = Some(Arc::clone(&context));
        primary.retained += 1;
        Ok(context)
    })
}

/// Gives the primary context back; the last one ends it.
pub(crate) fn release(device: usize) -> Outcome {
    let ended = with(device, |primary| {
        if primary.retained == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        primary.retained -= 1;
        Ok(if primary.retained == 0 { primary.context.take() } else { None })
    })?;
    if let Some(context) = ended {
        context.destroy();
    }
    Ok(())
}

/// Ends the primary context, whoever has retained it.
pub(crate) fn reset(device: usize) {
    let ended = with(device, |primary| {
        primary.retained = 0;
        primary.context.take()
    });
    if let Some(context) = ended {
        context.destroy();
    }
}

/// Its flags, and whether it is there.
pub(crate) fn state(device: usize) -> (u32, bool) {
    with(device, |primary| (primary.flags, primary.context.is_some()))
}

/// Sets the flags it has, or will have.
pub(crate) fn set_flags(device: usize, flags: u32) {
    with(device, |primary| {
        primary.flags = flags;
        if let Some(context) = &primary.context {
            context.flags.store(flags, std::sync::atomic::Ordering::Relaxed);
        }
    });
}
