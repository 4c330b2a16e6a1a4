//! The devices of the node and what is really free on them: NVML, read on a thread of its own, because a call into the
//! driver can take milliseconds. Without NVML the thread keeps trying, and each report says what is missing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvshare_common::units::{Bytes, DeviceId};
use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// Time between two readings while clients hold memory.
const BUSY: Duration = Duration::from_millis(100);
/// Time between two readings, or two attempts to load NVML, while there are none.
const QUIET: Duration = Duration::from_secs(2);
/// While a card is lost NVML starts anew this often, because only then it finds that the card is back. That takes long:
/// the other cards must not wait for it at every reading.
const RENEWAL: Duration = Duration::from_secs(10);

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
    /// What kept NVML, or one of the devices, from answering, and the remedy.
    pub problem: Option<String>,
}

/// Why there are no readings.
#[derive(Debug, thiserror::Error)]
enum DeviceError {
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
}

/// Asks the reading thread for more than its calm rhythm. The thread ends when all of these are gone.
#[derive(Clone, Debug)]
pub struct Poll(mpsc::Sender<Ask>);

#[derive(Debug, PartialEq, Eq)]
enum Ask {
    Now,
    Hurry(bool),
}

impl Poll {
    /// Reads at once: before memory is granted.
    pub fn now(&self) {
        // Without its thread (it could not be started) there are no devices, and nothing to read.
        let _ = self.0.send(Ask::Now);
    }

    /// Reads every 100 ms instead of every two seconds from now on, or goes back.
    pub fn hurry(&self, hurry: bool) {
        let _ = self.0.send(Ask::Hurry(hurry));
    }
}

/// Starts reading with the NVML at `library` (a name for the loader, or a path) and gives each report to `publish`,
/// the first one before long.
pub fn start(library: OsString, publish: impl FnMut(Report) + Send + 'static) -> std::io::Result<Poll> {
    let (asks, asked) = mpsc::channel();
    thread::Builder::new().name("devices".to_owned()).spawn(move || read_on(library, &asked, publish))?;
    Ok(Poll(asks))
}

fn read_on(library: OsString, asked: &mpsc::Receiver<Ask>, mut publish: impl FnMut(Report)) {
    let mut source = Source::new(library);
    let mut pause = QUIET;
    loop {
        publish(source.read());
        let read = Instant::now();
        loop {
            match asked.recv_timeout(pause.saturating_sub(read.elapsed())) {
                Ok(Ask::Now) | Err(RecvTimeoutError::Timeout) => break,
                Ok(Ask::Hurry(hurry)) => pause = if hurry { BUSY } else { QUIET },
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // One reading answers all that asked before it.
        for ask in asked.try_iter() {
            if let Ask::Hurry(hurry) = ask {
                pause = if hurry { BUSY } else { QUIET };
            }
        }
    }
}

/// NVML, loaded when it can be.
struct Source {
    library: OsString,
    nvml: Option<Nvml>,
    loaded: Instant,
    /// The most devices that it ever listed.
    most: u32,
}

impl Source {
    fn new(library: OsString) -> Source {
        Source { library, nvml: None, loaded: Instant::now(), most: 0 }
    }

    fn read(&mut self) -> Report {
        let began = Moment::now();
        match self.devices() {
            Ok(report) => Report { began, ..report },
            Err(error) => Report { began, devices: Vec::new(), problem: Some(error.to_string()) },
        }
    }

    fn devices(&mut self) -> Result<Report, DeviceError> {
        let nvml = if let Some(nvml) = self.nvml.take() {
            nvml
        } else {
            self.loaded = Instant::now();
            self.load()?
        };
        let library = || self.library.to_string_lossy().into_owned();
        let count =
            nvml.device_count().map_err(|source| DeviceError::Start { library: library(), source })?;
        let mut report = Report::default();
        self.most = self.most.max(count);
        let mut lost = count < self.most;
        for index in 0..count {
            match reading(&nvml, index) {
                Ok(reading) => report.devices.push(reading),
                Err(error) => {
                    lost |= matches!(
                        error,
                        DeviceError::Read {
                            source: NvmlError::Uninitialized
                                | NvmlError::DriverNotLoaded
                                | NvmlError::GpuLost
                                | NvmlError::Unknown,
                            ..
                        }
                    );
                    report.problem = Some(error.to_string());
                }
            }
        }
        // NVML finds new devices and recovered ones only when it starts; so an empty or broken one is not kept.
        if !report.devices.is_empty() && (!lost || self.loaded.elapsed() < RENEWAL) {
            self.nvml = Some(nvml);
        }
        if report.devices.is_empty() && report.problem.is_none() {
            return Err(DeviceError::NoDevice { library: library() });
        }
        Ok(report)
    }

    fn load(&self) -> Result<Nvml, DeviceError> {
        let library = || self.library.to_string_lossy().into_owned();
        Nvml::builder().lib_path(&self.library).init().map_err(|source| match source {
            NvmlError::LibloadingError(why) => DeviceError::Load { library: library(), why: why.to_string() },
            _ => DeviceError::Start { library: library(), source },
        })
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
    fn a_missing_nvml_is_reported_with_the_remedy_and_tried_again() {
        let (reports, received) = mpsc::channel();
        let poll = start("/nowhere/libnvidia-ml.so.1".into(), move |report| {
            let _ = reports.send(report);
        })
        .unwrap();
        for _ in 0..2 {
            let report = received.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(report.devices.is_empty());
            let problem = report.problem.unwrap();
            assert!(
                problem.contains("/nowhere/libnvidia-ml.so.1") && problem.contains("--nvml"),
                "{problem}"
            );
            poll.now();
        }
    }

    #[test]
    fn a_library_that_is_not_nvml_is_reported_and_not_used() {
        let report = Source::new("libc.so.6".into()).read();
        assert!(report.devices.is_empty());
        assert!(report.problem.unwrap().contains("nvidia-smi"));
    }

    #[test]
    fn the_thread_ends_with_the_last_poll() {
        let (reports, received) = mpsc::channel();
        let poll = start("/nowhere".into(), move |report| {
            let _ = reports.send(report);
        })
        .unwrap();
        drop(poll);
        let ended = loop {
            match received.recv_timeout(Duration::from_secs(20)) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(ended, RecvTimeoutError::Disconnected);
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
