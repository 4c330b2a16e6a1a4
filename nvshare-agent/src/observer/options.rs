//! What is observed, and how.

use std::path::PathBuf;
use std::time::Duration;

use super::part::Part;
use crate::config::Config;

/// See [`Options::scan_every`].
pub const SCAN_EVERY: Duration = Duration::from_secs(30);
/// One launch in so many is looked at closely, unless a test wants more.
const SAMPLE_EVERY: u32 = 64;

/// Where the kernel lists its modules.
const MODULES: &str = "/sys/module";

/// Where NVIDIA's module lets itself be asked.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Where one asks for the counters of managed memory.
    pub device: PathBuf,
    /// Where the kernel lists the numbers of devices.
    pub devices: PathBuf,
    /// The minor number of the device that programs open.
    pub minor: u32,
    /// Where the driver lists its cards.
    pub cards: PathBuf,
}

impl Default for Tools {
    fn default() -> Tools {
        Tools {
            device: "/dev/nvidia-uvm-tools".into(),
            devices: "/proc/devices".into(),
            minor: 0,
            cards: "/proc/driver/nvidia/gpus".into(),
        }
    }
}

/// What to observe.
#[derive(Clone, Debug)]
pub struct Options {
    /// The compiled programs.
    pub object: PathBuf,
    /// Libraries to observe before any process uses them.
    pub libraries: Vec<PathBuf>,
    /// Look for libraries that processes use. Without it only those named are observed.
    pub discover: bool,
    /// One launch in this many is sampled with its parameters; 0: none.
    pub sample_every: u32,
    /// Where the kernel lists its modules: `/sys/module`, except in tests.
    pub modules: PathBuf,
    /// Where the module's own counters are.
    pub tools: Tools,
    /// All processes are looked at this often, for what the events missed.
    pub scan_every: Duration,
    /// Attach probes one by one, as kernels before 6.6 need it, also where `uprobe_multi` is there.
    pub single: bool,
    /// Whose calls are observed; none: everybody's.
    pub part: Option<Part>,
}

impl Options {
    /// Everybody, by the programs in `object`.
    pub fn new(object: PathBuf) -> Options {
        Options {
            object,
            libraries: Vec::new(),
            discover: true,
            sample_every: SAMPLE_EVERY,
            modules: MODULES.into(),
            tools: Tools::default(),
            scan_every: SCAN_EVERY,
            single: false,
            part: None,
        }
    }

    /// What the agent's flags say; the programs lie beside its executable unless they are named.
    pub fn of(config: &Config) -> Options {
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("nvshare.bpf.o");
        Options {
            libraries: config.libcuda.clone(),
            part: config.node_cgroup.clone(),
            ..Options::new(config.ebpf_object.clone().unwrap_or_else(beside))
        }
    }
}
