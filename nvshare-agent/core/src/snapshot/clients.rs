//! Clients, and processes that are none.

use std::collections::BTreeMap;
use std::fmt;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ClientId;
use nvshare_common::probe::Call;
use serde::{Deserialize, Serialize};

use super::{Activity, Calls};
use crate::order::Priority;
use crate::process::Process;

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
    /// Faults that the device took on its managed memory, where the kernel tells.
    #[serde(default)]
    pub uvm_faults: u64,
    /// Managed bytes moved to the device.
    #[serde(default)]
    pub uvm_in: Bytes,
    /// Managed bytes moved from the device to the host.
    #[serde(default)]
    pub uvm_out: Bytes,
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
    /// Faults of its managed memory on the host, where the kernel tells.
    #[serde(default)]
    pub uvm_cpu_faults: u64,
    /// Of `uvm_bytes`, those that moved to devices.
    #[serde(default)]
    pub uvm_to_device: Bytes,
}

impl Totals {
    /// Counts by [`Call`], which are written with their names.
    pub fn named(counts: &[u64; Call::COUNT]) -> Calls {
        Calls(*counts)
    }

    /// Adds another client's.
    pub fn add(&mut self, other: &Totals) {
        self.combine(other, u64::saturating_add);
    }

    /// What was done since it was `before`.
    #[must_use]
    pub fn since(mut self, before: &Totals) -> Totals {
        self.combine(before, u64::saturating_sub);
        self
    }

    fn combine(&mut self, other: &Totals, of: fn(u64, u64) -> u64) {
        // Each by its name: the compiler tells of one that is missing here.
        let Totals {
            application_calls,
            engine_calls,
            application_seen,
            engine_seen,
            lost,
            copied_out,
            copied_in,
            clean,
            stops,
            stalls,
            swap_failures,
            uvm_faults,
            uvm_bytes,
            uvm_cpu_faults,
            uvm_to_device,
        } = self;
        for (calls, other) in [
            (application_calls, &other.application_calls),
            (engine_calls, &other.engine_calls),
            (application_seen, &other.application_seen),
            (engine_seen, &other.engine_seen),
        ] {
            calls.combine(other, of);
        }
        for (count, other) in [
            (lost, other.lost),
            (stops, other.stops),
            (stalls, other.stalls),
            (swap_failures, other.swap_failures),
            (uvm_faults, other.uvm_faults),
            (uvm_cpu_faults, other.uvm_cpu_faults),
        ] {
            *count = of(*count, other);
        }
        for (bytes, other) in [
            (copied_out, other.copied_out),
            (copied_in, other.copied_in),
            (clean, other.clean),
            (uvm_bytes, other.uvm_bytes),
            (uvm_to_device, other.uvm_to_device),
        ] {
            bytes.0 = of(bytes.0, other.0);
        }
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
    /// Faults of its managed memory on devices, where the kernel tells.
    #[serde(default)]
    pub uvm_faults: u64,
    /// Such faults on the host.
    #[serde(default)]
    pub uvm_cpu_faults: u64,
    /// Managed bytes moved by the driver, both ways.
    #[serde(default)]
    pub uvm_bytes: Bytes,
    /// Of `uvm_bytes`, those that moved to devices.
    #[serde(default)]
    pub uvm_to_device: Bytes,
    /// Records about it were lost, or it is older than the observer, so that the figures are inexact.
    pub inexact: bool,
    /// For how long it has launched nothing.
    pub idle_seconds: f64,
    /// What the uprobes saw, by [`Call::name`].
    pub seen: Calls,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each count and size is `number`.
    fn all(number: u64) -> Totals {
        let mut totals = serde_json::to_value(Totals::default()).unwrap();
        for total in totals.as_object_mut().unwrap().values_mut() {
            match total.as_object_mut() {
                Some(calls) => calls.values_mut().for_each(|count| *count = number.into()),
                None => *total = number.into(),
            }
        }
        serde_json::from_value(totals).unwrap()
    }

    #[test]
    fn everything_is_added_and_taken_away_again_and_nothing_falls_below_zero() {
        let mut sum = all(7);
        sum.add(&all(5));
        assert_eq!(sum, all(12));
        assert_eq!(sum.since(&all(5)), all(7));
        assert_eq!(all(7).since(&all(8)), Totals::default());
    }
}
