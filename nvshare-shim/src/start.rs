//! First use. Until the application's first successful `cuInit` the shim does nothing at all; then it takes its counter
//! page, its gate and its link to the agent into service. In the child of a fork it does nothing ever again.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::Once;

use crate::driver::driver;
use crate::turn::drain;
use crate::{config, counters, gate, life, link, proc, swap};

/// Takes up work, once, if the driver is initialised.
pub(crate) fn first_use() {
    static START: Once = Once::new();
    if !life::is_asleep() || driver().is_stand_in() {
        return;
    }
    // Who calls before `cuInit` is refused by the driver, and may come again.
    let Some(devices) = device_count() else { return };
    START.call_once(|| {
        if config::get().disabled {
            life::switch_off();
            return;
        }
        life::watch_forks();
        // Before the gate can be shut: see `threads::engine_thread`.
        driver().bind();
        gate::prepare();
        drain::prepare();
        proc::prepare();
        swap::prepare(devices);
        link::prepare();
        counters::page();
        life::begin();
        link::start();
    });
}

/// How many devices the driver has; none before it is initialised.
fn device_count() -> Option<usize> {
    let mut count = 0;
    // SAFETY: `count` is where the answer goes.
    let asked = unsafe { driver().cuDeviceGetCount(&raw mut count) };
    asked.ok().then(|| usize::try_from(count).unwrap_or(0))
}
