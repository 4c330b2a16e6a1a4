//! One change of a setting while the agent runs: `lease-floor=200ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::value;

/// A setting and its new value. It travels as the text that it prints and reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Change {
    /// The shortest lease.
    LeaseFloor(Duration),
    /// The longest lease while others wait.
    LeaseCeiling(Duration),
    /// A lease in multiples of what a switch costs.
    LeaseFactor(f64),
    /// Bytes of each device that are never granted.
    Reserve(Bytes),
    /// Host memory for shadows.
    HostMemory(Bytes),
    /// Which log lines are written: a level or a filter, as it was given; no setting of the conductor's, and read at the door.
    Log(String),
}

impl Change {
    /// The new filter of the log, if it is that.
    pub fn log_filter(&self) -> Option<String> {
        if let Change::Log(filter) = self { Some(filter.clone()) } else { None }
    }
}

impl FromStr for Change {
    type Err = String;
    fn from_str(text: &str) -> Result<Change, String> {
        let names = "lease-floor=200ms, lease-ceiling=60s, lease-factor=40, reserve=256M, host-memory=64G or log=debug";
        let (name, value) = text.split_once('=').ok_or_else(|| format!("expected NAME=VALUE: {names}"))?;
        let change = match name.trim() {
            "lease-floor" => value::duration(value).map(Change::LeaseFloor),
            "lease-ceiling" => value::duration(value).map(Change::LeaseCeiling),
            "lease-factor" => value::factor(value.trim()).map(Change::LeaseFactor),
            "reserve" => value::bytes(value).map(Change::Reserve),
            "host-memory" => value::some_bytes(value).map(Change::HostMemory),
            "log" if value.trim().is_empty() => Err("expected error, warn, info, debug or trace".to_owned()),
            "log" => Ok(Change::Log(value.trim().to_owned())),
            _ => return Err(format!("`{name}` cannot be changed while the agent runs: expected {names}")),
        };
        change.map_err(|expected| format!("`{value}` is no value for {name}: {expected}"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::LeaseFloor(floor) => write!(f, "lease-floor={}", value::show(*floor)),
            Change::LeaseCeiling(ceiling) => write!(f, "lease-ceiling={}", value::show(*ceiling)),
            Change::LeaseFactor(factor) => write!(f, "lease-factor={factor}"),
            Change::Reserve(bytes) => write!(f, "reserve={}", bytes.0),
            Change::HostMemory(bytes) => write!(f, "host-memory={}", bytes.0),
            Change::Log(filter) => write!(f, "log={filter}"),
        }
    }
}

impl TryFrom<String> for Change {
    type Error = String;
    fn try_from(text: String) -> Result<Change, String> {
        text.parse()
    }
}

impl From<Change> for String {
    fn from(change: Change) -> String {
        change.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reads_what_it_prints() {
        let texts = [
            "lease-floor=200ms",
            "lease-ceiling=60s",
            "lease-factor=12.5",
            "reserve=1024",
            "host-memory=4096",
            "log=info,nvshare_agent::policy=debug",
        ];
        for text in texts {
            assert_eq!(text.parse::<Change>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_change_that_makes_no_sense_says_what_is_expected() {
        for (text, expected) in [
            ("lease-floor", "NAME=VALUE"),
            ("lease-floor=soon", "200ms"),
            ("socket=/run/x", "lease-ceiling"),
            ("host-memory=0", "more than 0"),
            ("lease-factor=0.5", "from 1"),
            ("log=", "error, warn, info"),
        ] {
            let error = text.parse::<Change>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
