//! What NVML said of the devices, as values: read by `device`, booked by the ledger.

use std::collections::BTreeMap;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;
use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// What NVML says about one device at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Which device.
    pub device: DeviceId,
    /// NVML's number for it: the order in which the driver lists devices.
    pub index: u32,
    /// The product's name.
    pub name: String,
    /// All of its memory.
    pub total: Bytes,
    /// What is not free: processes, and what the driver keeps for itself.
    pub used: Bytes,
    /// What its PCIe link can carry each way, in bytes per second; none where NVML cannot tell.
    #[serde(default)]
    pub link: Option<u64>,
    /// What each process holds, by host pid. Processes whose share NVML cannot tell are absent.
    pub per_process: BTreeMap<u32, Bytes>,
}

/// The result of one round over all devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// When this round began: what was free before it shows in it, what became free later may not.
    pub began: Moment,
    /// One entry for each device that answered.
    pub devices: Vec<Reading>,
    /// Every card that NVML lists was asked and has answered, well or not: what is not in `devices` cannot be had.
    pub complete: bool,
    /// What kept NVML, or one of the devices, from answering, and the remedy.
    pub problem: Option<String>,
}
