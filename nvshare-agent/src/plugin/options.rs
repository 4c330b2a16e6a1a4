//! The device plugin's flags.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nvshare_agent_core::value;

use super::OWN_SOCKET;
use super::allocate::LIBRARY_DIRECTORY;

/// Whether the plugin runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// As soon as the kubelet's directory is there
    Auto,
    /// Never
    Off,
    /// Always; without a kubelet it is reported as missing
    On,
}

/// How the library gets into a pod's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preload {
    /// A read-only /etc/ld.so.preload: nothing that the pod sets takes it away
    LdSoPreload,
    /// LD_PRELOAD: a pod that sets its own runs without the library
    Env,
    /// A CDI specification, for runtimes that are configured for it
    Cdi,
}

/// How the plugin runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of the device plugin (Kubernetes)")]
pub struct Options {
    /// Whether to offer shares of this node's GPUs to pods as nvshare.com/gpu
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        env = "NVSHARE_AGENT_DEVICE_PLUGIN",
        default_value = "auto"
    )]
    pub device_plugin: When,

    /// How many shares each GPU has: how many containers can be given it at the same time
    #[arg(long, value_name = "N", env = "NVSHARE_AGENT_SHARES", default_value = "10",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub shares: u32,

    /// The kubelet's directory of device plugins
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_KUBELET_DIR",
        default_value = "/var/lib/kubelet/device-plugins", value_parser = kubelet_directory)]
    pub kubelet_dir: PathBuf,

    /// How the library gets into a pod's programs
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        env = "NVSHARE_AGENT_PRELOAD",
        default_value = "ld-so-preload"
    )]
    pub preload: Preload,

    /// The directory of libnvshare.so on the node, at the same path in the agent's container
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_LIBRARY_DIR", default_value = LIBRARY_DIRECTORY,
        value_parser = directory)]
    pub library_dir: PathBuf,

    /// Where --preload=cdi puts its specification
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_CDI_DIR", default_value = "/var/run/cdi",
        value_parser = directory)]
    pub cdi_dir: PathBuf,
}

/// Paths go to the kubelet, which has another working directory.
fn directory(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err("expected the absolute path of a directory".to_owned());
    }
    Ok(text.into())
}

fn kubelet_directory(text: &str) -> Result<PathBuf, String> {
    let path = directory(text)?;
    value::socket_path(&path.join(OWN_SOCKET).to_string_lossy())?;
    Ok(path)
}
