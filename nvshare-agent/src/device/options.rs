//! How the devices are asked.

use std::ffi::OsString;

use clap::Args;

/// What the devices are read by.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// NVML: a path, or a name for the loader
    #[arg(long, value_name = "LIBRARY", env = "NVSHARE_AGENT_NVML", default_value = "libnvidia-ml.so.1")]
    pub nvml: OsString,
}
