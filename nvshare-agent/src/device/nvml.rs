//! NVML itself: what it says of one card, and why it says nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvshare_agent_core::reading::Reading;
use nvshare_common::bytes::Bytes;

/// Why there are no readings.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error(
        "cannot load NVML from {library}: {why}; install the NVIDIA driver's utilities, mount the driver's \
         libraries into the agent's container (NVIDIA_DRIVER_CAPABILITIES=utility), or name the file with --nvml"
    )]
    Load { library: String, why: String },
    #[error("NVML ({library}) does not start: {source}; check that `nvidia-smi` works on this node")]
    Start { library: String, source: NvmlError },
    #[error("NVML ({library}) lists no GPU; check that `nvidia-smi -L` lists one in the agent's container")]
    NoDevice { library: String },
    #[error(
        "NVML cannot read GPU {index}: {source}; check `nvidia-smi -i {index} -q` and the kernel log for Xid lines"
    )]
    Read { index: u32, source: NvmlError },
    #[error(
        "GPU {index} has the UUID `{uuid}`, which is not one: expected GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
    )]
    Uuid { index: u32, uuid: String },
    #[error(
        "GPU {index} has not answered NVML for {}: its clients run as without an agent; check the kernel log for Xid \
         lines", format_args!("{silence:?}")
    )]
    Silent { index: u32, silence: std::time::Duration },
}

impl DeviceError {
    /// Whether NVML has to start anew before this card can be read again.
    pub(super) fn lost(&self) -> bool {
        matches!(
            self,
            DeviceError::Read {
                source: NvmlError::Uninitialized
                    | NvmlError::DriverNotLoaded
                    | NvmlError::GpuLost
                    | NvmlError::Unknown,
                ..
            }
        )
    }
}

/// Something that lists cards and reads them. Each may be read by a thread of its own.
pub(super) trait Library: Send + Sync {
    /// How many cards there are.
    fn count(&self) -> Result<u32, DeviceError>;
    /// One of them.
    fn read(&self, index: u32) -> Result<Reading, DeviceError>;
}

/// NVML under the name it was loaded by.
pub(super) struct Loaded {
    nvml: Nvml,
    library: String,
}

/// Loads and starts it.
pub(super) fn load(name: &OsStr) -> Result<Loaded, DeviceError> {
    let library = name.to_string_lossy().into_owned();
    let nvml = Nvml::builder().lib_path(name).init().map_err(|source| match source {
        NvmlError::LibloadingError(why) => {
            DeviceError::Load { library: library.clone(), why: why.to_string() }
        }
        _ => DeviceError::Start { library: library.clone(), source },
    })?;
    Ok(Loaded { nvml, library })
}

impl Library for Loaded {
    fn count(&self) -> Result<u32, DeviceError> {
        match self.nvml.device_count() {
            Ok(0) => Err(DeviceError::NoDevice { library: self.library.clone() }),
            Ok(count) => Ok(count),
            Err(source) => Err(DeviceError::Start { library: self.library.clone(), source }),
        }
    }

    fn read(&self, index: u32) -> Result<Reading, DeviceError> {
        reading(&self.nvml, index)
    }
}

fn reading(nvml: &Nvml, index: u32) -> Result<Reading, DeviceError> {
    let failed = |source| DeviceError::Read { index, source };
    let device = nvml.device_by_index(index).map_err(failed)?;
    let uuid = device.uuid().map_err(failed)?;
    let memory = device.memory_info().map_err(failed)?;
    let compute = device.running_compute_processes().map_err(failed)?;
    // Rendering next to computing is rare on a node, and some devices do not support the question.
    let graphics = device.running_graphics_processes().unwrap_or_default();
    Ok(Reading {
        device: uuid.parse().map_err(|_| DeviceError::Uuid { index, uuid })?,
        index,
        name: device.name().map_err(failed)?,
        total: Bytes(memory.total),
        used: Bytes(memory.total.saturating_sub(memory.free)),
        link: link(device.max_pcie_link_gen().ok(), device.max_pcie_link_width().ok()),
        per_process: by_process(compute.into_iter().chain(graphics)),
    })
}

/// What a PCIe link of a generation and a number of lanes carries each way, with its encoding taken off: 8b/10b, from the
/// third generation on 128b/130b, from the sixth on 242 of 256 bytes.
fn link(generation: Option<u32>, lanes: Option<u32>) -> Option<u64> {
    let lane = match generation? {
        1 => 250_000_000,
        2 => 500_000_000,
        3 => 984_615_384,
        4 => 1_969_230_769,
        5 => 3_938_461_538,
        6 => 7_562_500_000,
        _ => return None,
    };
    Some(lane * u64::from(lanes?)).filter(|bytes| *bytes > 0)
}

/// A process that computes and renders is listed twice, with the same figure; one with several contexts on slices of a
/// device is listed once for each, with different ones. The larger figure is the safe one.
fn by_process(processes: impl Iterator<Item = ProcessInfo>) -> BTreeMap<u32, Bytes> {
    let mut all = BTreeMap::new();
    for process in processes {
        if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
            let held: &mut Bytes = all.entry(process.pid).or_default();
            *held = (*held).max(Bytes(bytes));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn a_links_speed_follows_from_its_generation_and_lanes() {
        assert_eq!(link(Some(3), Some(16)), Some(15_753_846_144));
        assert_eq!(link(Some(1), Some(1)), Some(250_000_000));
        for (generation, lanes) in
            [(None, Some(16)), (Some(3), None), (Some(3), Some(0)), (Some(99), Some(16))]
        {
            assert_eq!(link(generation, lanes), None, "{generation:?} {lanes:?}");
        }
    }

    #[test]
    fn a_library_that_is_not_nvml_is_reported_and_not_used() {
        let error = load("libc.so.6".as_ref()).err().unwrap().to_string();
        assert!(error.contains("nvidia-smi"), "{error}");
    }

    #[test]
    fn a_process_that_is_listed_twice_counts_once() {
        let all = by_process(
            [
                info(7, UsedGpuMemory::Used(100)),
                info(7, UsedGpuMemory::Used(100)),
                info(8, UsedGpuMemory::Unavailable),
            ]
            .into_iter(),
        );
        assert_eq!(all, BTreeMap::from([(7, Bytes(100))]));
    }
}
