//! What is observed, and how; and what of that flags say.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::part::Part;

/// See [`Options::scan_every`].
pub const SCAN_EVERY: Duration = Duration::from_secs(30);
/// One launch in so many is looked at closely, unless a test wants more.
const SAMPLE_EVERY: u32 = 64;

/// Where the kernel lists its modules.
const MODULES: &str = "/sys/module";

/// Where NVIDIA's module lets itself be asked.
#[derive(Clone, Debug)]
pub enum Tools {
    /// By itself.
    Module {
        /// Where one asks for the counters of managed memory.
        device: PathBuf,
        /// Where the kernel lists the numbers of devices.
        devices: PathBuf,
        /// The minor number of the device that programs open.
        minor: u32,
        /// Where the driver lists its cards.
        cards: PathBuf,
    },
    /// This file stands for it: that of simulated cards.
    File(PathBuf),
}

impl Default for Tools {
    fn default() -> Tools {
        Tools::Module {
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
    /// Where the module's own counters are; none: they are not asked for.
    pub tools: Option<Tools>,
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
            tools: Some(Tools::default()),
            scan_every: SCAN_EVERY,
            single: false,
            part: None,
        }
    }
}

/// The observer's flags.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Flags {
    /// A CUDA driver library to observe at once, before any process uses it; may be repeated
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_LIBCUDA", value_delimiter = ':')]
    pub libcuda: Vec<PathBuf>,

    /// Observe only what this cgroup's processes (second version), and those of the cgroups below it, ask of the CUDA driver
    /// [default: everybody on the machine]
    #[arg(long, value_name = "DIRECTORY", env = "NVSHARE_AGENT_NODE_CGROUP", value_parser = Part::at)]
    pub node_cgroup: Option<Part>,

    /// The compiled eBPF programs [default: nvshare.bpf.o beside this executable]
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_EBPF_OBJECT")]
    pub ebpf_object: Option<PathBuf>,

    /// Run without uprobes: idle clients and cold memory are then recognised less well
    #[arg(long, env = "NVSHARE_AGENT_NO_UPROBES")]
    pub no_uprobes: bool,

    /// Let NVIDIA's kernel module count, process by process, what it moves of managed memory. Meanwhile the agent holds that
    /// memory: one that is frozen keeps what such processes leave. Without this kprobes count, where there are some
    #[arg(long, env = "NVSHARE_AGENT_UVM_COUNTERS")]
    pub uvm_counters: bool,

    /// For tests: what stands for the module where the cards are simulated
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_UVM_TOOLS", hide = true)]
    pub uvm_tools: Option<PathBuf>,
}

impl Flags {
    /// What to observe, if anything; the programs lie beside the agent's executable unless they are named.
    pub fn options(&self) -> Option<Options> {
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("nvshare.bpf.o");
        let options = Options {
            libraries: self.libcuda.clone(),
            part: self.node_cgroup.clone(),
            tools: self.uvm_counters.then(|| self.uvm_tools.clone().map_or_else(Tools::default, Tools::File)),
            ..Options::new(self.ebpf_object.clone().unwrap_or_else(beside))
        };
        (!self.no_uprobes).then_some(options)
    }
}
