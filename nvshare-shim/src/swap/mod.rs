//! The swap engine: one thread per device moves extents between the device and their shadows.
//!
//! - [`plan`]: which extents leave, pure; [`engine`]: the thread; [`outward`], [`inward`]: its two pipelines;
//!   [`resources`], [`stream`], [`fingerprints`]: what it has in the application's context; [`dma`]: who else may use device memory;
//!   [`views`]: where an extent is mapped; [`site`]: how its bytes are copied from there.

pub mod dma;
pub mod engine;
pub mod fingerprints;
pub mod inward;
pub mod outward;
pub mod plan;
pub mod resources;
mod site;
pub mod stream;
mod views;

use std::sync::mpsc::channel;
use std::time::Duration;

use crate::device::tasks;
use crate::turn::{dead, run_state};
use crate::{log, proc, threads};

/// How long the debugging tool waits for memory to come back.
const RESIDENT_LIMIT: Duration = Duration::from_secs(10);

/// Starts a swap thread for each of so many devices; before the gate can be shut.
pub(crate) fn prepare(devices: usize) {
    for index in 0..devices {
        let (give, given) = channel();
        match threads::engine_thread(&format!("swap{index}"), move || {
            // Lives as long as the process, with a device or without.
            proc::open();
            if let Ok(device) = given.recv() {
                engine::run(device);
            }
        }) {
            Ok(_) => tasks::offer(give),
            Err(error) => log::error!("cannot start a swap thread: {error}"),
        }
    }
}

/// Waits until nothing is missing on any device, or it is clear that this takes too long.
pub fn wait_until_resident() {
    let began = std::time::Instant::now();
    while run_state::missing() > 0 && !dead::is_dead() && began.elapsed() < RESIDENT_LIMIT {
        std::thread::sleep(Duration::from_micros(200));
    }
}
