//! Everything that can be configured, as flags and environment variables, in one place; a file may say the same (see
//! [`mod@file`]). What makes no sense is refused here, before anything is started.

mod examples;
pub mod file;
pub mod show;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nvshare_agent_core::change::Change;
use nvshare_agent_core::settings::Settings;
use nvshare_agent_core::value;
use nvshare_common::bytes::Bytes;
use nvshare_common::protocol;

use crate::admin::orders::{PinArgs, SetWhat, SwapArgs};
use crate::install::InstallArgs;
use crate::observer::Part;
use crate::plugin;
use crate::pods;

/// Where the agent listens for its administrator unless told otherwise.
pub const ADMIN_SOCKET: &str = "/run/nvshare-admin/admin.sock";

/// The exit status after a configuration that makes no sense (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// What scripts can tell from the exit status of a command that asks the running agent.
pub const EXIT_STATUSES: &str = "Exit status: 0 done, 1 refused or failed, 2 no such client, 3 the agent cannot be \
                                 reached, 4 the agent is not ready (only by `status --check`), 64 the command line \
                                 makes no sense.";

/// Lets processes share a GPU whose memory is smaller than the sum of what they use.
///
/// The agent runs once per node, as root. It watches every process that uses the CUDA driver, decides who holds the
/// GPU's memory and who runs, and tells the shim in each client when to move its memory to the host and back.
#[derive(Debug, Parser)]
#[command(name = "nvshare-agent", version, args_conflicts_with_subcommands = true, max_term_width = 110)]
pub struct Cli {
    /// What to do; running the agent when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run the agent when no command is given.
    #[command(flatten)]
    pub config: Config,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent (the default)
    #[command(after_help = examples::run())]
    Run(Box<Config>),
    /// Show how the agent would be configured by these flags, the environment and the file, and what comes from where
    #[command(after_help = examples::config())]
    Config(Box<ConfigArgs>),
    /// Show devices, clients and settings of the running agent
    #[command(after_help = examples::status())]
    Status(StatusArgs),
    /// Change settings of the running agent, or of one client, until it restarts
    Set(SetArgs),
    /// Swap a client out by order, or let it take its turns again
    Swap(SwapArgs),
    /// Never swap a client out: it runs whenever it wants to
    Pin(PinArgs),
    /// Undo `pin`
    Unpin(PinArgs),
    /// Show devices and clients of the running agent on the whole terminal, again and again
    #[command(after_help = examples::top())]
    Top(TopArgs),
    /// Show which CUDA drivers are observed, how many of their functions, and what is wrong with the probes
    #[command(after_help = examples::probes())]
    Probes(ProbesArgs),
    /// Put the library for clients on the node, where pods get it from
    #[command(after_help = examples::install_shim())]
    InstallShim(InstallArgs),
}

/// Where the running agent is.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// The administrator's socket of the running agent
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_ADMIN_SOCKET", default_value = ADMIN_SOCKET,
        value_parser = value::socket_path, global = true)]
    pub admin_socket: PathBuf,
}

/// `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// As for `run`.
    #[command(flatten)]
    pub config: Config,
    /// Print one JSON object: by flag, its value and where that comes from
    #[arg(long)]
    pub json: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print the whole state as JSON
    #[arg(long)]
    pub json: bool,
    /// End with status 4 when the agent is not ready
    #[arg(long)]
    pub check: bool,
}

/// `set`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, after_help = examples::set())]
pub struct SetArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// What to change: lease-floor=200ms, lease-ceiling=60s, lease-factor=40, reserve=256M, host-memory=64G,
    /// log=debug
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = crate::admin::change::read)]
    pub changes: Vec<Change>,
    /// What else to set.
    #[command(subcommand)]
    pub what: Option<SetWhat>,
}

/// `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Time between two tables
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = value::duration)]
    pub every: Duration,
    /// Print this many tables and end; without it, and on a terminal, the whole screen is used
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// `probes`.
#[derive(Debug, Args)]
pub struct ProbesArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print everything known about the probes as JSON
    #[arg(long)]
    pub json: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// How the agent runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of the agent")]
pub struct Config {
    /// A file with any of these options [default: /etc/nvshare/agent.toml, if it exists]; see `nvshare-agent config --help`
    #[arg(long = "config", value_name = "PATH", env = "NVSHARE_AGENT_CONFIG")]
    pub config_file: Option<PathBuf>,

    /// Socket for clients; its directory is created and is what gets mounted into pods, read-only
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_SOCKET", default_value = protocol::SOCKET,
        value_parser = value::socket_path)]
    pub socket: PathBuf,

    /// Socket for the administrator; its directory is created with mode 0700 and never mounted anywhere
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_ADMIN_SOCKET", default_value = ADMIN_SOCKET,
        value_parser = value::socket_path)]
    pub admin_socket: PathBuf,

    /// Address for the status page, /metrics, /livez, /readyz and /api/v1/state
    #[arg(long, value_name = "ADDRESS:PORT", env = "NVSHARE_AGENT_LISTEN", default_value = "0.0.0.0:9430",
        value_parser = listen)]
    pub listen: SocketAddr,

    /// Address for /livez and /readyz alone, so that these are answered whoever crowds the pages [default: none, they are
    /// answered with the pages only]
    #[arg(long, value_name = "ADDRESS:PORT", env = "NVSHARE_AGENT_PROBES", value_parser = listen)]
    pub probes: Option<SocketAddr>,

    /// NVML: a path, or a name for the loader
    #[arg(long, value_name = "LIBRARY", env = "NVSHARE_AGENT_NVML", default_value = "libnvidia-ml.so.1")]
    pub nvml: OsString,

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

    /// The most bytes of each device that clients get in total [default: all of it]
    #[arg(long, value_name = "BYTES", env = "NVSHARE_AGENT_CAPACITY", value_parser = value::some_bytes)]
    pub capacity: Option<Bytes>,

    /// Bytes of each device that are never granted, for what the driver allocates by itself
    #[arg(long, value_name = "BYTES", env = "NVSHARE_AGENT_RESERVE", default_value = "64M",
        value_parser = value::bytes)]
    pub reserve: Bytes,

    /// Host memory for what is swapped out [default: half of the node's memory]
    #[arg(long, value_name = "BYTES", env = "NVSHARE_AGENT_HOST_MEMORY", value_parser = value::some_bytes)]
    pub host_memory: Option<Bytes>,

    /// The shortest lease: a client that runs is not stopped earlier while it works
    #[arg(long, value_name = "DURATION", env = "NVSHARE_AGENT_LEASE_FLOOR", default_value = "500ms",
        value_parser = value::duration)]
    pub lease_floor: Duration,

    /// The longest lease while others wait
    #[arg(long, value_name = "DURATION", env = "NVSHARE_AGENT_LEASE_CEILING", default_value = "60s",
        value_parser = value::duration)]
    pub lease_ceiling: Duration,

    /// A lease lasts this many times the measured cost of a switch, within floor and ceiling
    #[arg(long, value_name = "FACTOR", env = "NVSHARE_AGENT_LEASE_FACTOR", default_value = "40",
        value_parser = value::factor)]
    pub lease_factor: f64,

    /// A client whose work completes nothing for this long while it is stopped is let go on
    #[arg(long, value_name = "DURATION", env = "NVSHARE_AGENT_STALL", default_value = "10s",
        value_parser = value::duration)]
    pub stall: Duration,

    /// The name of this node in Kubernetes: whose pods are watched
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = value::node_name)]
    pub node_name: Option<String>,

    /// Do not find out to which pods clients belong; their annotations then do nothing
    #[arg(long, env = "NVSHARE_AGENT_NO_PODS")]
    pub no_pods: bool,

    /// The kubelet's pod-resources socket: tells whose a client is without the API server
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_POD_RESOURCES", default_value = pods::POD_RESOURCES,
        value_parser = value::socket_path)]
    pub pod_resources: PathBuf,

    /// The API server, without an account, as by `kubectl proxy` [default: by the service account, in a cluster]
    #[arg(long, value_name = "URL", env = "NVSHARE_AGENT_KUBE_API", value_parser = pods::server)]
    pub kube_api: Option<axum::http::Uri>,

    /// Which log lines: error, warn, info, debug, trace, or a filter such as info,nvshare_agent_core=debug
    #[arg(long, value_name = "FILTER", env = "NVSHARE_AGENT_LOG", default_value = "info", value_parser = crate::log::filter)]
    pub log: String,

    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT", env = "NVSHARE_AGENT_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// The kubelet's device plugin.
    #[command(flatten)]
    pub plugin: plugin::Options,
}

/// Flags that make sense one by one and not together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A floor above the ceiling.
    #[error("--lease-floor ({floor}) is longer than --lease-ceiling ({ceiling}): expected floor <= ceiling")]
    FloorAboveCeiling {
        /// As configured.
        floor: String,
        /// As configured.
        ceiling: String,
    },
    /// Pods would see the administrator's socket.
    #[error(
        "--admin-socket ({}) lies in the directory of --socket, which is mounted into pods: expected a directory of \
         its own, such as /run/nvshare-admin", admin.display()
    )]
    SharedDirectory {
        /// As configured.
        admin: PathBuf,
    },
    /// Nothing would be left to grant.
    #[error("--reserve ({reserve}) leaves nothing of --capacity ({capacity}): expected reserve < capacity")]
    ReserveAboveCapacity {
        /// As configured.
        reserve: Bytes,
        /// As configured.
        capacity: Bytes,
    },
}

impl Config {
    /// Looks at what single flags cannot show.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.lease_floor > self.lease_ceiling {
            return Err(ConfigError::FloorAboveCeiling {
                floor: value::show(self.lease_floor),
                ceiling: value::show(self.lease_ceiling),
            });
        }
        // Nor below it: the directory is mounted with all that is in it.
        if self.socket.parent().is_some_and(|mounted| self.admin_socket.starts_with(mounted)) {
            return Err(ConfigError::SharedDirectory { admin: self.admin_socket.clone() });
        }
        match self.capacity {
            Some(capacity) if capacity <= self.reserve => {
                Err(ConfigError::ReserveAboveCapacity { reserve: self.reserve, capacity })
            }
            _ => Ok(()),
        }
    }

    /// What the conductor needs of this.
    pub fn settings(&self) -> Settings {
        Settings {
            lease_floor: self.lease_floor,
            lease_ceiling: self.lease_ceiling,
            lease_factor: self.lease_factor,
            stall: self.stall,
            reserve: self.reserve,
            capacity: self.capacity,
            host_memory: self.host_memory.unwrap_or_else(half_of_memory),
            ..Settings::default()
        }
    }
}

/// Half of the node's memory: the budget for shadows when none is configured.
fn half_of_memory() -> Bytes {
    let system = rustix::system::sysinfo();
    Bytes(system.totalram as u64 * u64::from(system.mem_unit) / 2)
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port, such as 0.0.0.0:9430, 127.0.0.1:9430 or [::]:9430".to_owned()
    })
}

#[cfg(test)]
mod tests;
