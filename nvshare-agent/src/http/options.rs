//! The flags of the pages.

use std::net::SocketAddr;

use clap::Args;

/// Where the pages are.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Address for the status page, /metrics, /livez, /readyz and /api/v1/state
    #[arg(long, value_name = "ADDRESS:PORT", env = "NVSHARE_AGENT_LISTEN", default_value = "0.0.0.0:9430",
        value_parser = address)]
    pub listen: SocketAddr,

    /// Address for /livez and /readyz alone, so that these are answered whoever crowds the pages [default: none, they are
    /// answered with the pages only]
    #[arg(long, value_name = "ADDRESS:PORT", env = "NVSHARE_AGENT_PROBES", value_parser = address)]
    pub probes: Option<SocketAddr>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port, such as 0.0.0.0:9430, 127.0.0.1:9430 or [::]:9430".to_owned()
    })
}
