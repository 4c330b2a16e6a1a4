//! What the agent is made of and which parts are missing, with the reason and the remedy: the source of `/readyz`, of a
//! metric, and of a line of `nvshare-agent status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// A part of the agent that can be missing while the rest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The administrator's socket.
    Admin,
    /// Telling the conductor to whom processes belong.
    Attribution,
    /// The clients' socket.
    Clients,
    /// The conductor. Without it the agent ends.
    Conductor,
    /// NVML and at least one device.
    Devices,
    /// Host memory for shadows.
    HostMemory,
    /// The HTTP pages.
    Pages,
    /// The kubelet's device plugin.
    Plugin,
    /// To which pods processes belong.
    Pods,
    /// The look at what is published, from which some parts are told to be missing.
    Report,
    /// The uprobes on the CUDA driver.
    Uprobes,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 11] = [
        Part::Admin,
        Part::Attribution,
        Part::Clients,
        Part::Conductor,
        Part::Devices,
        Part::HostMemory,
        Part::Pages,
        Part::Plugin,
        Part::Pods,
        Part::Report,
        Part::Uprobes,
    ];

    /// The part as a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Admin => "admin",
            Part::Attribution => "attribution",
            Part::Clients => "clients",
            Part::Conductor => "conductor",
            Part::Devices => "devices",
            Part::HostMemory => "host_memory",
            Part::Pages => "pages",
            Part::Plugin => "plugin",
            Part::Pods => "pods",
            Part::Report => "report",
            Part::Uprobes => "uprobes",
        }
    }

    /// Whether the agent does nothing useful without it.
    pub const fn is_needed(self) -> bool {
        matches!(self, Part::Clients | Part::Conductor | Part::Devices)
    }
}

/// How a part is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It does its work.
    Works,
    /// It does not, or not fully.
    Missing {
        /// The reason and the remedy, for a person.
        why: String,
    },
    /// Its task or thread ended, and nobody starts another one.
    Ended {
        /// The reason and the remedy, for a person.
        why: String,
    },
    /// It was switched off by configuration.
    Off,
}

/// A part that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub part: Part,
    /// The reason and the remedy.
    pub why: String,
    /// Whether the agent is not ready because of it.
    pub needed: bool,
}

/// The answer to `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether everything needed works.
    pub ready: bool,
    /// What does not work.
    pub missing: Vec<Missing>,
}

/// The standing of all parts; each part reports its own. A part that has not reported yet is starting.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<Part, Standing>>>);

impl Health {
    /// Nothing has reported yet.
    pub fn new() -> Health {
        Health::default()
    }

    /// `part` works.
    pub fn works(&self, part: Part) {
        self.set(part, Standing::Works);
    }

    /// `part` is missing, for a reason that names the remedy.
    pub fn missing(&self, part: Part, why: &impl ToString) {
        self.set(part, Standing::Missing { why: why.to_string() });
    }

    /// `part` ended although nobody asked it to: missing for good, whatever is said of it later.
    pub fn ended(&self, part: Part, why: &impl ToString) {
        self.set(part, Standing::Ended { why: why.to_string() });
    }

    /// `part` is switched off by configuration.
    pub fn off(&self, part: Part) {
        self.set(part, Standing::Off);
    }

    /// Everything that is missing, and whether the rest is enough.
    pub fn readiness(&self) -> Readiness {
        let parts = self.parts();
        let missing: Vec<Missing> = Part::ALL
            .into_iter()
            .filter_map(|part| {
                let why = match parts.get(&part) {
                    None => "it is starting".to_owned(),
                    Some(Standing::Missing { why } | Standing::Ended { why }) => why.clone(),
                    Some(Standing::Works | Standing::Off) => return None,
                };
                Some(Missing { part, why, needed: part.is_needed() || !parts.contains_key(&part) })
            })
            .collect();
        Readiness { ready: missing.iter().all(|missing| !missing.needed), missing }
    }

    /// Says so in the log when something changed.
    fn set(&self, part: Part, standing: Standing) {
        let mut parts = self.parts();
        let before = parts.get(&part);
        if before == Some(&standing) || matches!(before, Some(Standing::Ended { .. })) {
            return;
        }
        match (before, &standing) {
            (_, Standing::Missing { why } | Standing::Ended { why }) => {
                warn!(part = part.name(), why, "running without a part");
            }
            (Some(Standing::Missing { .. }), _) => info!(part = part.name(), "no longer missing"),
            _ => {}
        }
        parts.insert(part, standing);
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeMap<Part, Standing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ready_before_every_part_has_reported() {
        let health = Health::new();
        for part in Part::ALL {
            assert!(!health.readiness().ready);
            health.works(part);
        }
        assert_eq!(health.readiness(), Readiness { ready: true, missing: vec![] });
    }

    #[test]
    fn only_a_part_that_is_needed_keeps_the_agent_from_being_ready() {
        let health = Health::new();
        for part in Part::ALL {
            health.works(part);
        }
        health.missing(Part::Uprobes, &"no BTF");
        health.off(Part::HostMemory);
        let readiness = health.readiness();
        assert!(readiness.ready);
        assert_eq!(readiness.missing.len(), 1);
        assert_eq!(readiness.missing[0].why, "no BTF");
        health.missing(Part::Devices, &"no NVML");
        assert!(!health.readiness().ready);
        health.works(Part::Devices);
        assert!(health.readiness().ready);
    }
}
