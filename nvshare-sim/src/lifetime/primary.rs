//! Primary contexts: one for each device, counted by those who retain it and kept by green contexts. A reset ends what it
//! holds and releases no reference: its handle stays, and whoever retains it next makes it anew (seen on an H200).

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::{CUcontext, CUresult};

use super::destroy_primary;
use crate::call::Outcome;
use crate::context::{Anchor, Context};

struct Primary {
    anchor: Anchor,
    context: Option<Arc<Context>>,
    /// What a reset ended, until the next one is made or nobody has it any more: it can still be made current.
    ended: Option<Arc<Context>>,
    retained: usize,
    greens: usize,
    flags: u32,
}

static PRIMARIES: LazyLock<Mutex<Vec<Primary>>> = LazyLock::new(|| {
    let primary = |device: usize| Primary {
        anchor: Anchor::new(device),
        context: None,
        ended: None,
        retained: 0,
        greens: 0,
        flags: 0,
    };
    Mutex::new((0..crate::device::count()).map(primary).collect())
});

fn with<T>(device: usize, act: impl FnOnce(&mut Primary) -> T) -> T {
    let mut primaries = PRIMARIES.lock().unwrap_or_else(PoisonError::into_inner);
    act(&mut primaries[device])
}

impl Primary {
    /// The context, made if it is not there.
    fn context(&mut self, device: usize) -> Outcome<Arc<Context>> {
        crate::failure::check()?;
        if let Some(context) = &self.context {
            return Ok(Arc::clone(context));
        }
        let context = super::create(device, self.flags, Some(self.anchor))?;
        self.context = Some(Arc::clone(&context));
        self.ended = None;
        Ok(context)
    }

    /// The context, if nobody needs it any more.
    fn unneeded(&mut self) -> Option<Arc<Context>> {
        if self.retained > 0 || self.greens > 0 {
            return None;
        }
        self.ended = None;
        self.context.take()
    }
}

/// The primary context, made if it is not there.
pub(crate) fn retain(device: usize) -> Outcome<Arc<Context>> {
    with(device, |primary| {
        let context = primary.context(device)?;
        primary.retained += 1;
        Ok(context)
    })
}

/// Gives the primary context back; the last one ends it, unless a green context keeps it.
pub(crate) fn release(device: usize) -> Outcome {
    let ended = with(device, |primary| {
        if primary.retained == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        primary.retained -= 1;
        Ok(primary.unneeded())
    })?;
    if let Some(context) = ended {
        destroy_primary(&context);
    }
    Ok(())
}

/// A green context keeps the primary one, which is made if it is not there.
pub(crate) fn keep(device: usize) -> Outcome<Arc<Context>> {
    with(device, |primary| {
        let context = primary.context(device)?;
        primary.greens += 1;
        Ok(context)
    })
}

/// A green context keeps it no more.
pub(crate) fn let_go(device: usize) {
    let ended = with(device, |primary| {
        primary.greens -= 1;
        primary.unneeded()
    });
    if let Some(context) = ended {
        destroy_primary(&context);
    }
}

/// Ends the primary context, whoever has retained it; they still have.
pub(crate) fn reset(device: usize) {
    let ended = with(device, |primary| {
        let context = primary.context.take()?;
        primary.ended = Some(Arc::clone(&context)).filter(|_| primary.retained > 0 || primary.greens > 0);
        Some(context)
    });
    if let Some(context) = ended {
        destroy_primary(&context);
    }
}

/// The primary context that a handle named until a reset ended it.
pub(crate) fn ended(handle: CUcontext) -> Option<Arc<Context>> {
    let primaries = PRIMARIES.lock().unwrap_or_else(PoisonError::into_inner);
    primaries.iter().find(|primary| primary.anchor.handle() == handle)?.ended.clone()
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
