//! What somebody outside the policy wants of one client: the administrator by name, or its pod by annotations.

use std::fmt;
use std::str::FromStr;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ClientId;
use serde::{Deserialize, Serialize};

/// One order. The conductor books it in the ledger; the policy respects it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// For whom.
    pub client: ClientId,
    /// What.
    pub what: What,
}

/// What is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Stop it and move its memory to the host, and keep it there until [`What::SwapIn`].
    SwapOut,
    /// Undo [`What::SwapOut`]: it takes its turns again.
    SwapIn,
    /// Never swap it out (`true`), or treat it as any other (`false`).
    Pin(bool),
    /// Who waits longer than others.
    Priority(Priority),
    /// Its share of the time among clients of the same priority: twice the weight, twice the time.
    Weight(Weight),
    /// The most bytes of each device it may have; `None`: what the device has.
    Limit(Option<Bytes>),
}

/// Clients of a higher priority run first; within a priority, time is shared by weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Runs when nobody of a higher priority wants to.
    Low,
    /// What everybody has who says nothing.
    #[default]
    Normal,
    /// Runs before everybody else.
    High,
}

impl Priority {
    /// As in annotations, commands and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Priority {
    type Err = String;
    fn from_str(text: &str) -> Result<Priority, String> {
        [Priority::Low, Priority::Normal, Priority::High]
            .into_iter()
            .find(|priority| priority.name() == text.trim())
            .ok_or_else(|| format!("`{text}` is no priority: expected high, normal or low"))
    }
}

/// A share of the time, from 0.01 to 100; 1 is what everybody has who says nothing.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Weight(f64);

impl Weight {
    /// As a number.
    pub const fn value(self) -> f64 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight(1.0)
    }
}

impl TryFrom<f64> for Weight {
    type Error = String;
    fn try_from(weight: f64) -> Result<Weight, String> {
        if (0.01..=100.0).contains(&weight) {
            Ok(Weight(weight))
        } else {
            Err(format!("{weight} is no weight: expected a number from 0.01 to 100"))
        }
    }
}

impl From<Weight> for f64 {
    fn from(weight: Weight) -> f64 {
        weight.0
    }
}

impl FromStr for Weight {
    type Err = String;
    fn from_str(text: &str) -> Result<Weight, String> {
        let weight: f64 = text
            .trim()
            .parse()
            .map_err(|_| format!("`{text}` is no weight: expected a number from 0.01 to 100"))?;
        weight.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_reads_what_it_prints_and_nothing_else() {
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            assert_eq!(priority.to_string().parse(), Ok(priority));
        }
        assert!("urgent".parse::<Priority>().unwrap_err().contains("high, normal or low"));
    }

    #[test]
    fn a_weight_is_a_number_within_bounds() {
        assert_eq!("2".parse(), Weight::try_from(2.0));
        for text in ["0", "-1", "101", "NaN", "much"] {
            assert!(text.parse::<Weight>().unwrap_err().contains("0.01 to 100"), "{text}");
        }
    }
}
