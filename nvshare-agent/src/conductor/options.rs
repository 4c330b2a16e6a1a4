//! What is shared, and how: the settings that an agent begins with.

use std::time::Duration;

use clap::Args;
use nvshare_agent_core::settings::Settings;
use nvshare_agent_core::value;
use nvshare_common::bytes::Bytes;

/// How the devices are shared.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
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
}

/// Flags that make sense one by one and not together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A floor above the ceiling.
    #[error("--lease-floor ({floor}) is longer than --lease-ceiling ({ceiling}): expected floor <= ceiling")]
    FloorAboveCeiling {
        /// As configured.
        floor: String,
        /// As configured.
        ceiling: String,
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

impl Options {
    /// Looks at what single flags cannot show.
    pub fn check(&self) -> Result<(), OptionsError> {
        if self.lease_floor > self.lease_ceiling {
            return Err(OptionsError::FloorAboveCeiling {
                floor: value::show(self.lease_floor),
                ceiling: value::show(self.lease_ceiling),
            });
        }
        match self.capacity {
            Some(capacity) if capacity <= self.reserve => {
                Err(OptionsError::ReserveAboveCapacity { reserve: self.reserve, capacity })
            }
            _ => Ok(()),
        }
    }

    /// The settings that these make.
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
