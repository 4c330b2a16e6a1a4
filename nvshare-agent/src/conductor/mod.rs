//! The one task that owns ledger and policy: it takes observations, requests and readings, and sends commands.

pub mod core;
pub mod switches;

use tokio::sync::{mpsc, oneshot};

use crate::change::Change;
use crate::device::Report;
use crate::observation::Observation;
use crate::settings::{Settings, SettingsError};

/// How many inputs may wait for the conductor; then whoever sends waits too.
pub const INPUTS: usize = 4096;

/// Whatever the conductor hears.
#[derive(Debug)]
pub enum Input {
    /// What the uprobes saw, in order.
    Observed(Vec<Observation>),
    /// What NVML says.
    Devices(Report),
    /// An operator changes settings.
    Set {
        /// All or none of these.
        changes: Vec<Change>,
        /// The settings from now on, or why nothing was changed.
        answer: oneshot::Sender<Result<Settings, SettingsError>>,
    },
}

/// The way to the conductor, and its end.
pub fn inputs() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(INPUTS)
}
