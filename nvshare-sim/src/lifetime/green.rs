//! Green contexts: made in a device's primary context, which each keeps.

use std::sync::Arc;

use super::primary;
use crate::call::Outcome;
use crate::context::green::{GREENS, Green};

/// Makes one on a device.
pub(crate) fn create(device: usize, multiprocessors: u32) -> Outcome<Arc<Green>> {
    let green = Green::new(primary::keep(device)?, multiprocessors);
    GREENS.insert::<()>(Arc::clone(&green));
    Ok(green)
}

/// Ends it at once: work of its streams runs on, its streams cannot be used any more.
pub(crate) fn destroy(green: &Arc<Green>) {
    if GREENS.remove(green.handle()).is_some() {
        green.destroy();
        primary::let_go(green.primary.device);
    }
}
