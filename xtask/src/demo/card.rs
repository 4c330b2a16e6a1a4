//! The card of the demo: simulated, or a real one of which the agent grants a part.

use anyhow::{Context, Result, ensure};
use nvshare_sim_card::{Cards, Config, Traffic};
use nvshare_testbed::{Artifacts, Node};
use serde::Deserialize;

/// How fast a simulated kernel goes over memory, in bytes per second.
const DEVICE_BYTES_PER_SECOND: u64 = 2_000_000_000;

/// A card, and everything that depends on whether it is real.
pub(crate) enum Card {
    /// Every mode gets a fresh one.
    Simulated { artifacts: Artifacts, bytes: u64, link: u64 },
    /// The machine's first GPU.
    Real { artifacts: Artifacts, bytes: u64, link: u64, free: u64 },
}

/// What `nvshare-workload --link` prints.
#[derive(Deserialize)]
struct Link {
    bytes_per_second: f64,
    free_bytes: u64,
}

impl Card {
    pub(crate) fn simulated(artifacts: Artifacts, bytes: u64, link: u64) -> Card {
        Card::Simulated { artifacts, bytes, link }
    }

    /// Measures the real card's link.
    pub(crate) fn real(artifacts: Artifacts, bytes: u64) -> Result<Card> {
        let node = Node::builder().artifacts(artifacts.clone()).real().build();
        let output = node.client(artifacts.workload()).arg("--link").output()?;
        ensure!(
            output.status.success(),
            "cannot measure the link: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let link: Link =
            serde_json::from_slice(&output.stdout).context("the workload's report on the link")?;
        ensure!(
            link.free_bytes >= bytes,
            "the card has {} bytes free, less than the {bytes} it is to play: give a smaller --card-bytes",
            link.free_bytes
        );
        Ok(Card::Real { artifacts, bytes, link: link.bytes_per_second as u64, free: link.free_bytes })
    }

    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self, Card::Simulated { .. })
    }

    pub(crate) fn link_bytes_per_second(&self) -> u64 {
        let (Card::Simulated { link, .. } | Card::Real { link, .. }) = self;
        *link
    }

    /// A node with this card.
    pub(crate) fn node(&self) -> Node {
        match self {
            Card::Simulated { artifacts, bytes, link } => Node::builder()
                .artifacts(artifacts.clone())
                .env("NVSHARE_SIM_CARD_BYTES", bytes.to_string())
                .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", link.to_string())
                .env("NVSHARE_SIM_DEVICE_BYTES_PER_SECOND", DEVICE_BYTES_PER_SECOND.to_string())
                // At most an eighth of what a switch moves: extents flow through both directions one behind another.
                .env("NVSHARE_EXTENT_BYTES", (bytes / 32).next_multiple_of(2 << 20).min(64 << 20).to_string())
                .build(),
            Card::Real { artifacts, .. } => Node::builder().artifacts(artifacts.clone()).real().build(),
        }
    }

    /// How the agent is started for it.
    pub(crate) fn agent_flags(&self, lease: &str) -> Vec<String> {
        let mut flags = vec!["--lease-floor".into(), lease.into(), "--lease-ceiling".into(), lease.into()];
        match self {
            Card::Real { bytes, .. } => flags.extend(["--capacity".into(), bytes.to_string()]),
            // The default is made for cards a hundred times as large, and a simulated driver allocates nothing by itself.
            Card::Simulated { .. } => flags.extend(["--reserve".into(), "2M".into()]),
        }
        flags
    }

    /// Why this much managed memory must not be asked for, if it must not.
    pub(crate) fn cannot_hold_managed(&self, bytes: u64) -> Option<String> {
        match self {
            Card::Real { free, .. } if *free < bytes => Some(format!(
                "it would ask for {bytes} bytes of managed memory, and the card has {free} free; more can hang it"
            )),
            _ => None,
        }
    }

    /// Bytes that crossed the link of `node` so far, both ways; a real card does not tell.
    pub(crate) fn bytes_moved(&self, node: &Node) -> Result<Option<u64>> {
        let (Card::Simulated { .. }, Some(directory)) = (self, node.card()) else { return Ok(None) };
        // The card exists, so it keeps its own parameters.
        let cards =
            Cards::open(directory, &Config::default()).context("cannot look at the simulated card")?;
        let Traffic { to_device, to_host, faulted_in, evicted } = cards.traffic(0);
        Ok(Some(to_device + to_host + faulted_in + evicted))
    }
}
