//! What an operator can choose about sharing, and change while the agent runs.

use std::time::Duration;

use nvshare_common::bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::change::Change;

/// All of it. Times are in seconds where they are written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// No lease is shorter (unless its holder is idle).
    #[serde(with = "seconds")]
    pub lease_floor: Duration,
    /// No lease is longer when somebody waits.
    #[serde(with = "seconds")]
    pub lease_ceiling: Duration,
    /// A lease lasts this many times as long as the switch that began it took.
    pub lease_factor: f64,
    /// A drain counts as stalled after this long without one completion.
    #[serde(with = "seconds")]
    pub stall: Duration,
    /// After this many stalled drains in a row a client is served around.
    pub stalls_until_unyielding: u32,
    /// A command without an answer for this long makes its client unyielding.
    #[serde(with = "seconds")]
    pub command_deadline: Duration,
    /// How long an unyielding client is left alone before it is tried again.
    #[serde(with = "seconds")]
    pub unyielding_retry: Duration,
    /// Memory of each device that is never granted, besides [`Settings::pins`].
    pub reserve: Bytes,
    /// Play a smaller device: grants, overhead and foreign memory together stay below this.
    pub capacity: Option<Bytes>,
    /// Host memory for shadows, of all clients together.
    pub host_memory: Bytes,
    /// How long the grants of a dead client are kept if NVML goes on to show its memory.
    #[serde(with = "seconds")]
    pub burial: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            lease_floor: Duration::from_millis(500),
            lease_ceiling: Duration::from_mins(1),
            lease_factor: 40.0,
            stall: Duration::from_secs(10),
            stalls_until_unyielding: 3,
            command_deadline: Duration::from_secs(30),
            unyielding_retry: Duration::from_mins(1),
            reserve: Bytes(64 << 20),
            capacity: None,
            host_memory: Bytes::ZERO,
            burial: Duration::from_secs(10),
        }
    }
}

/// Settings that make no sense together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// The floor is above the ceiling.
    #[error(
        "the lease floor ({floor:?}) is longer than the ceiling ({ceiling:?}): expected floor <= ceiling"
    )]
    Order {
        /// The floor.
        floor: Duration,
        /// The ceiling.
        ceiling: Duration,
    },
    /// Nothing is left to grant.
    #[error(
        "the reserve ({reserve}) leaves nothing of the capacity ({capacity}): expected reserve < capacity"
    )]
    Reserve {
        /// The reserve.
        reserve: Bytes,
        /// The capacity.
        capacity: Bytes,
    },
}

/// Pinned host memory takes this part of its size of the device that reaches it (seen on an H200: 2 MiB for each GiB).
const PINNED: u64 = 512;
/// What is kept back is for shadows so many times as large as the device. Where there are more, a client that took all that
/// was free may lack what they take: then the reserve for drivers gives way, too.
const SHADOWS: u64 = 4;

impl Settings {
    /// What shadows, once there are `shadows` of them, may still take of a device of this capacity: promised to nobody, because
    /// what a client holds must find its place again when all of them are pinned.
    pub fn pins(&self, capacity: Bytes, shadows: Bytes) -> Bytes {
        let most = self.host_memory.min(Bytes(capacity.0.saturating_mul(SHADOWS)));
        Bytes(most.saturating_sub(shadows).0 / PINNED)
    }

    /// These settings after all of `changes`, if they make sense together.
    pub fn with(&self, changes: &[Change]) -> Result<Settings, SettingsError> {
        let mut new = self.clone();
        for change in changes {
            match *change {
                Change::Log(_) => {}
                Change::LeaseFloor(floor) => new.lease_floor = floor,
                Change::LeaseCeiling(ceiling) => new.lease_ceiling = ceiling,
                Change::LeaseFactor(factor) => new.lease_factor = factor,
                Change::Reserve(bytes) => new.reserve = bytes,
                Change::HostMemory(bytes) => new.host_memory = bytes,
            }
        }
        new.check()?;
        Ok(new)
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.lease_floor > self.lease_ceiling {
            return Err(SettingsError::Order { floor: self.lease_floor, ceiling: self.lease_ceiling });
        }
        match self.capacity {
            Some(capacity) if capacity <= self.reserve => {
                Err(SettingsError::Reserve { reserve: self.reserve, capacity })
            }
            _ => Ok(()),
        }
    }
}

/// A time as a number of seconds.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_judged_together_and_a_senseless_result_is_refused() {
        let now = Settings::default();
        let floor = Change::LeaseFloor(Duration::from_secs(100));
        assert!(now.with(std::slice::from_ref(&floor)).unwrap_err().to_string().contains("floor <= ceiling"));
        let both = [floor, Change::LeaseCeiling(Duration::from_secs(200))];
        assert_eq!(now.with(&both).unwrap().lease_floor, Duration::from_secs(100));
        let small = Settings { capacity: Some(Bytes::GIB), ..now };
        assert!(small.with(&[Change::Reserve(Bytes::GIB)]).is_err());
    }

    #[test]
    fn what_shadows_will_take_of_a_device_is_kept_back_until_they_have_taken_it() {
        let card = Bytes(16 << 30);
        let with = |host_memory| Settings { host_memory, ..Settings::default() };
        assert_eq!(with(Bytes(32 << 30)).pins(card, Bytes::ZERO), Bytes(64 << 20));
        assert_eq!(with(Bytes(32 << 30)).pins(card, Bytes(24 << 30)), Bytes(16 << 20));
        assert_eq!(with(Bytes(32 << 30)).pins(card, Bytes(33 << 30)), Bytes::ZERO);
        assert_eq!(with(Bytes(1 << 40)).pins(card, Bytes::ZERO), Bytes(128 << 20), "no more than a 128th");
    }

    #[test]
    fn settings_are_written_in_seconds() {
        let text = serde_json::to_value(Settings::default()).unwrap();
        assert_eq!(text["lease_floor"], 0.5);
        assert_eq!(serde_json::from_value::<Settings>(text).unwrap(), Settings::default());
    }
}
