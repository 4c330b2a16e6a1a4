//! The flags of the clients' socket.

use std::path::PathBuf;

use clap::Args;
use nvshare_agent_core::value;
use nvshare_common::protocol;

/// Where clients come in.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Socket for clients; its directory is created and is what gets mounted into pods, read-only
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_SOCKET", default_value = protocol::SOCKET,
        value_parser = value::socket_path)]
    pub socket: PathBuf,
}
