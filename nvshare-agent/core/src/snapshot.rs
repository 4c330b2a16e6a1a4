//! Everything the agent lets anybody see, as plain data: `/api/v1/state`, `/metrics`, `status` and `top` are made from a
//! [`State`]. The conductor publishes a new one after each change; readers cannot change anything.

mod calls;

use std::collections::BTreeMap;
use std::fmt;

use nvshare_common::probe::Call;
use nvshare_common::units::{Bytes, ClientId, DeviceId};
use serde::{Deserialize, Serialize};

pub use self::calls::Calls;

use crate::observation::Health;
use crate::order::Priority;
use crate::process::Process;
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
    /// The host memory of shadows.
    pub host: Host,
    /// The uprobes.
    pub observer: Health,
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

/// To whom a process belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// The pod's namespace; empty outside of Kubernetes.
    pub namespace: String,
    /// The pod; empty outside of Kubernetes.
    pub pod: String,
    /// The container; where its name is not known, the first 12 digits of its id; empty outside of one.
    pub container: String,
}

impl fmt::Display for Owner {
    /// `namespace/pod/container`, the container alone outside of Kubernetes, or `-`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pod.as_str(), self.container.as_str()) {
            ("", "") => f.pad("-"),
            ("", container) => f.pad(container),
            (pod, container) => f.pad(&format!("{}/{pod}/{container}", self.namespace)),
        }
    }
}

/// One client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// The agent's number for it.
    pub client: ClientId,
    /// The process.
    pub process: Process,
    /// Its name (`/proc/PID/comm`).
    pub name: String,
    /// Its cgroup, by which pod and container are recognised.
    pub cgroup: String,
    /// To whom it belongs.
    #[serde(default)]
    pub owner: Owner,
    /// The shim's release.
    pub shim: String,
    /// Its priority.
    #[serde(default)]
    pub priority: Priority,
    /// Its share of the time among clients of its priority; 1 is usual.
    #[serde(default = "one")]
    pub weight: f64,
    /// It is never swapped out.
    #[serde(default)]
    pub pinned: bool,
    /// It is swapped out by order, until further orders.
    #[serde(default)]
    pub held_out: bool,
    /// The most it may have of each device, by order.
    #[serde(default)]
    pub ordered_limit: Option<Bytes>,
    /// What it is doing.
    pub activity: Activity,
    /// Since when it waits, in seconds.
    pub waiting_seconds: f64,
    /// For how long it has done nothing.
    pub idle_seconds: f64,
    /// What is left of its lease; negative when it is over and nobody else could use the memory.
    pub lease_seconds: Option<f64>,
    /// How long it has run in all, by its weight; the policy compares these.
    pub virtual_runtime_seconds: f64,
    /// Drains in a row that stalled.
    pub stalls: u32,
    /// It wants to run and cannot as things are: more must stay on a device beside it than leaves it room.
    #[serde(default)]
    pub hindered: bool,
    /// It gets no more memory on a device, because one that came before it could not run otherwise.
    #[serde(default)]
    pub latecomer: bool,
    /// Why it cannot run, be stopped or be moved, for people.
    pub notes: Vec<String>,
    /// Its memory, by device.
    pub devices: Vec<ClientDevice>,
    /// Arenas it holds.
    pub arenas: u64,
    /// Their bytes.
    pub arena_bytes: Bytes,
    /// What it did.
    pub totals: Totals,
}

fn one() -> f64 {
    1.0
}

impl Client {
    /// What was ordered for it that is not usual, for people: `high, weight 2, pinned`. Empty when nothing was.
    pub fn orders(&self) -> String {
        let mut orders = Vec::new();
        if self.held_out {
            orders.push("held out".to_owned());
        }
        if self.pinned {
            orders.push("pinned".to_owned());
        }
        if self.priority != Priority::default() {
            orders.push(self.priority.to_string());
        }
        if (self.weight - 1.0).abs() > f64::EPSILON {
            orders.push(format!("weight {}", self.weight));
        }
        orders.extend(self.ordered_limit.map(|limit| format!("at most {limit}")));
        orders.join(", ")
    }
}

/// What a client holds on one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientDevice {
    /// The device's UUID.
    pub uuid: String,
    /// The grant.
    pub granted: Bytes,
    /// What must be resident for it to run.
    pub needed: Bytes,
    /// The most it can ever have.
    pub limit: Bytes,
    /// Held on the device.
    pub resident: Bytes,
    /// Held on the host only.
    pub swapped: Bytes,
    /// Shadows, of resident extents too.
    pub shadow: Bytes,
    /// Held and immovable.
    pub unswappable: Bytes,
    /// The same by reason.
    pub unswappable_reasons: BTreeMap<String, Bytes>,
    /// What NVML says the process holds, where it can tell.
    pub measured: Option<Bytes>,
}

/// What a client did since it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Calls on observed functions that the shim says its application made, by [`Call::name`].
    pub application_calls: Calls,
    /// The same for the shim's own threads.
    pub engine_calls: Calls,
    /// What the uprobes saw of both.
    pub application_seen: Calls,
    /// See `application_seen`.
    pub engine_seen: Calls,
    /// Records that the uprobes lost.
    pub lost: u64,
    /// Bytes copied to the host by swap out.
    pub copied_out: Bytes,
    /// Bytes copied to the device by swap in.
    pub copied_in: Bytes,
    /// Bytes released without a copy.
    pub clean: Bytes,
    /// Times it was stopped.
    pub stops: u64,
    /// Drains that stalled.
    pub stalls: u64,
    /// Swap outs that failed.
    pub swap_failures: u64,
    /// Faults of its managed memory, where the kernel tells.
    pub uvm_faults: u64,
    /// Managed bytes moved by the driver, both ways.
    pub uvm_bytes: Bytes,
}

impl Totals {
    /// Counts by [`Call`], which are written with their names.
    pub fn named(counts: &[u64; Call::COUNT]) -> Calls {
        Calls(*counts)
    }

    /// Adds another client's.
    pub fn add(&mut self, other: &Totals) {
        self.application_calls.add(&other.application_calls);
        self.engine_calls.add(&other.engine_calls);
        self.application_seen.add(&other.application_seen);
        self.engine_seen.add(&other.engine_seen);
        self.lost += other.lost;
        self.copied_out += other.copied_out;
        self.copied_in += other.copied_in;
        self.clean += other.clean;
        self.stops += other.stops;
        self.stalls += other.stalls;
        self.swap_failures += other.swap_failures;
        self.uvm_faults += other.uvm_faults;
        self.uvm_bytes += other.uvm_bytes;
    }
}

/// A client that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The agent's number for it.
    pub client: ClientId,
    /// The process it was.
    pub process: Process,
    /// Its name.
    pub name: String,
    /// What it did, by the last look at its counter page.
    pub totals: Totals,
}

/// A process that uses the driver without being a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Foreign {
    /// The process.
    pub process: Process,
    /// Its name.
    pub name: String,
    /// To whom it belongs.
    #[serde(default)]
    pub owner: Owner,
    /// What NVML says it holds, on all devices.
    pub measured: Bytes,
    /// Device memory it allocated and has not freed, as far as it was seen.
    pub allocated: Bytes,
    /// The same by device, by the process's own numbers for them; `?` where that is not known.
    #[serde(default)]
    pub by_device: BTreeMap<String, Bytes>,
    /// Device memory freed in a stream's order, that its pools may keep: at most this much.
    #[serde(default)]
    pub pooled: Bytes,
    /// The same as `allocated` for managed memory.
    pub managed: Bytes,
    /// Records about it were lost, or it is older than the observer, so that the figures are inexact.
    pub inexact: bool,
    /// For how long it has launched nothing.
    pub idle_seconds: f64,
    /// What the uprobes saw, by [`Call::name`].
    pub seen: Calls,
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

/// A distribution of times, as Prometheus has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending.
    pub bounds: Vec<f64>,
    /// How many were at most as long as each bound (cumulative).
    pub counts: Vec<u64>,
    /// All of them together.
    pub sum: f64,
    /// How many there were.
    pub count: u64,
}

impl Default for Histogram {
    /// From a millisecond to a minute.
    fn default() -> Histogram {
        let bounds =
            vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        Histogram { counts: vec![0; bounds.len()], bounds, sum: 0.0, count: 0 }
    }
}

impl Histogram {
    /// Counts one more.
    pub fn record(&mut self, seconds: f64) {
        for (bound, count) in self.bounds.iter().zip(&mut self.counts) {
            *count += u64::from(seconds <= *bound);
        }
        self.sum += seconds;
        self.count += 1;
    }
}

/// The device's name in all texts.
pub fn uuid(device: DeviceId) -> String {
    device.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative() {
        let mut histogram = Histogram::default();
        histogram.record(0.3);
        histogram.record(100.0);
        assert_eq!((histogram.count, histogram.counts[0], *histogram.counts.last().unwrap()), (2, 0, 1));
    }

    #[test]
    fn a_state_survives_json() {
        let mut state = State::default();
        state.ended_totals.application_calls = Totals::named(&[1; Call::COUNT]);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
