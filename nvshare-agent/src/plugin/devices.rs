//! What the kubelet is offered: shares of the node's GPUs, and whether they may be given to pods. A GPU that was there
//! once stays on the list, so that its loss is seen as one.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nvshare_agent_core::snapshot::State;

use super::api::{Device, HEALTHY, UNHEALTHY};

/// A reading older than this is no sign of life. NVML is read every two seconds, and is slow at times.
const OLD: Duration = Duration::from_secs(15);

/// One share of a GPU: `<UUID>::<number>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// The GPU's UUID.
    pub gpu: String,
    /// Which share of it, from 0.
    pub number: u32,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.gpu, self.number)
    }
}

/// A text that names no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no device of this plugin: expected <GPU UUID>::<number of the share>")]
pub struct NoShare(pub String);

impl FromStr for Share {
    type Err = NoShare;

    fn from_str(text: &str) -> Result<Share, NoShare> {
        let (gpu, number) = text.rsplit_once("::").ok_or_else(|| NoShare(text.to_owned()))?;
        let number = number.parse().map_err(|_| NoShare(text.to_owned()))?;
        Ok(Share { gpu: gpu.to_owned(), number })
    }
}

/// The GPUs that were seen since the agent began.
#[derive(Clone, Debug)]
pub struct Roster {
    shares: u32,
    gpus: BTreeSet<String>,
}

impl Roster {
    /// No GPU yet; each has `shares` shares.
    pub fn new(shares: u32) -> Roster {
        Roster { shares, gpus: BTreeSet::new() }
    }

    /// How many shares a GPU has.
    pub fn shares(&self) -> u32 {
        self.shares
    }

    /// Whether pods can be given this share at all.
    pub fn has(&self, share: &Share) -> bool {
        share.number < self.shares && self.gpus.contains(&share.gpu)
    }

    /// All shares, by a `state` that was published `silence` ago. None is healthy where something that every pod needs
    /// is missing on the node (`usable`).
    pub fn list(&mut self, state: &State, silence: Duration, usable: bool) -> Vec<Device> {
        self.gpus.extend(state.devices.iter().map(|device| device.uuid.clone()));
        let mut list = Vec::with_capacity(self.gpus.len() * self.shares as usize);
        for gpu in &self.gpus {
            let alive = state.devices.iter().any(|device| {
                let age = device.reading_age_seconds + silence.as_secs_f64();
                device.uuid == *gpu && age <= OLD.as_secs_f64()
            });
            let health = if alive && usable { HEALTHY } else { UNHEALTHY };
            list.extend((0..self.shares).map(|number| Device {
                id: Share { gpu: gpu.clone(), number }.to_string(),
                health: health.to_owned(),
                topology: None,
            }));
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::snapshot;

    use super::*;

    fn state(gpus: &[(&str, f64)]) -> State {
        let device = |&(uuid, age): &(&str, f64)| snapshot::Device {
            uuid: uuid.to_owned(),
            reading_age_seconds: age,
            ..snapshot::Device::default()
        };
        State { devices: gpus.iter().map(device).collect(), ..State::default() }
    }

    fn shown(list: &[Device]) -> Vec<String> {
        list.iter().map(|device| format!("{} {}", device.id, device.health)).collect()
    }

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn every_gpu_has_its_shares() {
        let mut roster = Roster::new(2);
        assert_eq!(
            shown(&roster.list(&state(&[("GPU-b", 0.1), ("GPU-a", 1.0)]), NOW, true)),
            ["GPU-a::0 Healthy", "GPU-a::1 Healthy", "GPU-b::0 Healthy", "GPU-b::1 Healthy"]
        );
        assert!(roster.has(&"GPU-a::1".parse().unwrap()));
        assert!(!roster.has(&"GPU-a::2".parse().unwrap()) && !roster.has(&"GPU-c::0".parse().unwrap()));
    }

    #[test]
    fn a_gpu_that_is_gone_or_silent_is_unhealthy_until_it_is_back() {
        let mut roster = Roster::new(1);
        let both = state(&[("GPU-a", 0.0), ("GPU-b", 0.0)]);
        roster.list(&both, NOW, true);
        let unhealthy = ["GPU-a::0 Healthy", "GPU-b::0 Unhealthy"];
        assert_eq!(shown(&roster.list(&state(&[("GPU-a", 0.0)]), NOW, true)), unhealthy);
        assert_eq!(shown(&roster.list(&state(&[("GPU-a", 3.0), ("GPU-b", 16.0)]), NOW, true)), unhealthy);
        assert_eq!(shown(&roster.list(&both, NOW, true)), ["GPU-a::0 Healthy", "GPU-b::0 Healthy"]);
    }

    #[test]
    fn nothing_is_healthy_when_the_agent_says_nothing_or_the_library_is_missing() {
        let mut roster = Roster::new(1);
        let fresh = state(&[("GPU-a", 0.0)]);
        assert_eq!(shown(&roster.list(&fresh, Duration::from_secs(20), true)), ["GPU-a::0 Unhealthy"]);
        assert_eq!(shown(&roster.list(&fresh, NOW, false)), ["GPU-a::0 Unhealthy"]);
    }

    #[test]
    fn the_name_of_a_share_reads_back_and_others_are_refused() {
        let share = Share { gpu: "GPU-00000000-0000-0000-0000-000000000001".into(), number: 7 };
        assert_eq!(share.to_string().parse(), Ok(share));
        for text in ["", "GPU-a", "GPU-a::", "GPU-a::x", "GPU-a:1", "GPU-a::-1"] {
            assert_eq!(text.parse::<Share>(), Err(NoShare(text.into())));
        }
    }
}
