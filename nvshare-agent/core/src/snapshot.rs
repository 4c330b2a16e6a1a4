//! Everything the agent lets anybody see, as plain data: `/api/v1/state`, `/metrics`, `status` and `top` are made from a
//! [`State`]. The conductor publishes a new one after each change; readers cannot change anything.

mod calls;
mod clients;
mod histogram;

use std::collections::BTreeMap;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};
use serde::{Deserialize, Serialize};

pub use self::calls::Calls;
pub use self::clients::{Client, ClientDevice, Ended, Foreign, Owner, Totals};
pub use self::histogram::Histogram;

use crate::observation::ObserverState;
use crate::settings::Settings;

/// The whole agent at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The agent's release.
    pub release: String,
    /// The protocol it speaks to shims.
    pub protocol: u16,
    /// How long it runs, in seconds.
    pub up_seconds: f64,
    /// What it was told.
    pub settings: Settings,
    /// Processes that map the shim and have not said `Hello` since the agent started. Nothing is granted meanwhile.
    pub awaited: Vec<u32>,
    /// Whether granting has begun.
    pub granting: bool,
    /// Every device that NVML shows.
    pub devices: Vec<Device>,
    /// Why devices cannot be read, if so.
    pub devices_problem: Option<String>,
    /// Every client that is connected, or was and still runs.
    pub clients: Vec<Client>,
    /// Processes seen by the uprobes that are not clients.
    pub processes: Vec<Foreign>,
    /// Clients that ended, the latest last; at most [`ENDED`] of them.
    pub ended: Vec<Ended>,
    /// What all clients that ended did, together, those no longer in `ended` too.
    pub ended_totals: Totals,
    /// How many clients ended.
    pub ended_count: u64,
    /// What of all that clients had done already when this agent met them: they are older than it.
    #[serde(default)]
    pub earlier: Totals,
    /// The host memory of shadows.
    pub host: Host,
    /// The uprobes.
    pub observer: ObserverState,
    /// Changes of who holds the memory.
    pub switches: Switches,
    /// How long clients waited, from wanting to run until they ran.
    pub waiting_seconds: Histogram,
    /// How long one swap out lasted, from the command to its end.
    pub swap_out_seconds: Histogram,
    /// How long one swap in lasted, from the first grant to `Resident`.
    pub swap_in_seconds: Histogram,
    /// The clients' socket.
    pub sessions: Sessions,
}

impl State {
    /// What all clients did since the agent began, those that ended too. It never goes back, and begins at zero with the
    /// agent: a counter that only fell a little when the agent restarts would be taken for one that was reset, and what
    /// is left of it for new.
    pub fn totals(&self) -> Totals {
        let mut all = self.ended_totals.clone();
        for client in &self.clients {
            all.add(&client.totals);
        }
        all.since(&self.earlier)
    }
}

/// How many clients that ended are remembered one by one.
pub const ENDED: usize = 64;
/// How many switches are remembered one by one.
pub const SWITCHES: usize = 1024;

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its UUID as NVML prints it.
    pub uuid: String,
    /// NVML's number for it.
    pub index: u32,
    /// The product.
    pub name: String,
    /// All of its memory.
    pub total: Bytes,
    /// What its PCIe link can carry each way, in bytes per second, where NVML tells.
    #[serde(default)]
    pub link_bytes_per_second: Option<u64>,
    /// What the agent may use of it: the smaller of the memory and the configured capacity.
    pub capacity: Bytes,
    /// What is in use, by NVML.
    pub used: Bytes,
    /// Never granted.
    pub reserve: Bytes,
    /// The sum of all grants.
    pub granted: Bytes,
    /// What clients hold.
    pub resident: Bytes,
    /// What clients hold on the host instead.
    pub swapped: Bytes,
    /// What clients hold that cannot be moved.
    pub unswappable: Bytes,
    /// Overhead of clients and memory of others.
    pub foreign: Bytes,
    /// What of that may be managed memory, which the driver moves out of the way of whoever needs room.
    #[serde(default)]
    pub evictable: Bytes,
    /// What could be granted now.
    pub free: Bytes,
    /// The sum of what clients need in order to run.
    pub needed: Bytes,
    /// The needs exceed what there is: clients take turns.
    pub contended: bool,
    /// Granted bytes above what there is: the agent is taking back.
    pub excess: Bytes,
    /// Age of the reading, in seconds.
    pub reading_age_seconds: f64,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Holds the lease and works.
    Running,
    /// Holds the lease and does nothing.
    Idle,
    /// Was told to stop and drains.
    Stopping,
    /// Wants to run and must not, or its memory is on the way.
    Waiting,
    /// Does not hold the lease and does not want it.
    Stopped,
    /// Cannot be stopped and is served around.
    Unyielding,
    /// Its session ended and the process lives.
    Disconnected,
    /// A device error made all its calls fail.
    Dead,
    /// The process ended and its memory is not yet seen to be gone.
    Exited,
}

impl Activity {
    /// All of them.
    pub const ALL: [Activity; 9] = [
        Activity::Running,
        Activity::Idle,
        Activity::Stopping,
        Activity::Waiting,
        Activity::Stopped,
        Activity::Unyielding,
        Activity::Disconnected,
        Activity::Dead,
        Activity::Exited,
    ];

    /// As a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Activity::Running => "running",
            Activity::Idle => "idle",
            Activity::Stopping => "stopping",
            Activity::Waiting => "waiting",
            Activity::Stopped => "stopped",
            Activity::Unyielding => "unyielding",
            Activity::Disconnected => "disconnected",
            Activity::Dead => "dead",
            Activity::Exited => "exited",
        }
    }
}

/// Host memory for shadows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The budget.
    pub budget: Bytes,
    /// Given to clients as arenas.
    pub handed_out: Bytes,
    /// Being made.
    pub being_made: Bytes,
    /// What clients that take turns would need to have, and there is not.
    pub missing: Bytes,
    /// Why: the budget, or what the system said.
    pub problem: Option<String>,
}

/// Changes of who holds the memory: from the first `Stop` (or `SwapOut`, when nobody had to be stopped) until the
/// client that comes has everything resident.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Switches {
    /// How many there were.
    pub count: u64,
    /// The latest, oldest first, at most [`SWITCHES`].
    pub recent: Vec<Switch>,
    /// Bytes that all of them copied to the host.
    #[serde(default)]
    pub bytes_out: Bytes,
    /// Bytes that all of them copied to the devices.
    #[serde(default)]
    pub bytes_in: Bytes,
    /// How long they took.
    pub seconds: Histogram,
    /// How long of that was drain.
    pub drain_seconds: Histogram,
}

/// One switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Switch {
    /// Counted from 1.
    pub number: u64,
    /// Who came.
    pub client: ClientId,
    /// Its process.
    pub pid: u32,
    /// When it was over, by the agent's `up_seconds`.
    #[serde(default)]
    pub up_seconds: f64,
    /// How long it took.
    pub seconds: f64,
    /// Until the last of those who had to stop had stopped.
    pub drain_seconds: f64,
    /// Copied to the host for it.
    pub bytes_out: Bytes,
    /// Copied to the device for it.
    pub bytes_in: Bytes,
    /// Released without a copy.
    pub clean: Bytes,
}

/// The clients' socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// Sessions opened so far.
    pub opened: u64,
    /// Connections refused, with a short reason each.
    pub refused: BTreeMap<String, u64>,
    /// Sessions that ended, by a short reason each.
    pub closed: BTreeMap<String, u64>,
}

/// The device's name in all texts.
pub fn uuid(device: DeviceId) -> String {
    device.to_string()
}

#[cfg(test)]
mod tests {
    use nvshare_common::probe::Call;

    use super::*;

    #[test]
    fn a_state_survives_json() {
        let mut state = State::default();
        state.ended_totals.application_calls = Totals::named(&[1; Call::COUNT]);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
