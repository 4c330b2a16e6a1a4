//! Everything that can be configured, as flags and environment variables: each part has its own, here they come together.
//! A file may say the same (see [`mod@file`]). What makes no sense is refused before anything is started.

mod examples;
pub mod file;
pub mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::admin::args::{ProbesArgs, SetArgs, StatusArgs, TopArgs};
use crate::admin::orders::{PinArgs, SwapArgs};
use crate::install::InstallArgs;
use crate::{admin, conductor, control, device, http, log, observer, plugin, pods};

/// The exit status after a configuration that makes no sense (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

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
    Top(TopArgs),
    /// Show which CUDA drivers are observed, how many of their functions, and what is wrong with the probes
    Probes(ProbesArgs),
    /// Put the library for clients on the node, where pods get it from
    #[command(after_help = examples::install_shim())]
    InstallShim(InstallArgs),
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

/// How the agent runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of the agent")]
pub struct Config {
    /// A file with any of these options [default: /etc/nvshare/agent.toml, if it exists]; see `nvshare-agent config --help`
    #[arg(long = "config", value_name = "PATH", env = "NVSHARE_AGENT_CONFIG")]
    pub config_file: Option<PathBuf>,

    /// The clients' socket.
    #[command(flatten)]
    pub control: control::Options,

    /// The administrator's socket.
    #[command(flatten)]
    pub admin: admin::args::Options,

    /// The pages.
    #[command(flatten)]
    pub http: http::Options,

    /// The devices.
    #[command(flatten)]
    pub device: device::Options,

    /// The uprobes.
    #[command(flatten)]
    pub observer: observer::Flags,

    /// Leases and memory.
    #[command(flatten)]
    pub conductor: conductor::Options,

    /// The pods.
    #[command(flatten)]
    pub pods: pods::Flags,

    /// The log.
    #[command(flatten)]
    pub log: log::Options,

    /// The kubelet's device plugin.
    #[command(flatten)]
    pub plugin: plugin::Options,
}

/// Flags that make sense one by one and not together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Of one part.
    #[error(transparent)]
    Conductor(#[from] conductor::OptionsError),
    /// Pods would see the administrator's socket.
    #[error(
        "--admin-socket ({}) lies in the directory of --socket, which is mounted into pods: expected a directory of \
         its own, such as /run/nvshare-admin", admin.display()
    )]
    SharedDirectory {
        /// As configured.
        admin: PathBuf,
    },
}

impl Config {
    /// Looks at what single flags cannot show.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.conductor.check()?;
        // Nor below it: the directory is mounted with all that is in it.
        let (mounted, admin) = (self.control.socket.parent(), &self.admin.admin_socket);
        if mounted.is_some_and(|mounted| admin.starts_with(mounted)) {
            return Err(ConfigError::SharedDirectory { admin: admin.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
