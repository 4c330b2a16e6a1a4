//! What is wrong with the plugin, each thing reported once: by [`Health`], which logs what changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::health::{Health, Part};

/// What can be wrong at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matter {
    /// There are GPUs to offer.
    Devices,
    /// What pods get is on the node.
    Library,
    /// The kubelet's directory and the socket in it.
    Socket,
    /// Changes of that directory are seen at once.
    Watch,
    /// The kubelet knows the plugin.
    Kubelet,
}

/// All that is wrong.
#[derive(Clone, Debug)]
pub(super) struct Problems {
    health: Health,
    all: Arc<Mutex<BTreeMap<Matter, String>>>,
}

impl Problems {
    /// Nothing is wrong, and nothing works yet.
    pub(super) fn new(health: Health) -> Problems {
        Problems { health, all: Arc::default() }
    }

    /// How the matter stands. The plugin works when the kubelet knows it and nothing else is wrong.
    pub(super) fn set<E: ToString>(&self, matter: Matter, standing: Result<(), E>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match standing {
            Ok(()) => all.remove(&matter),
            Err(why) => all.insert(matter, why.to_string()),
        };
        if !all.is_empty() {
            let texts: Vec<&str> = all.values().map(String::as_str).collect();
            self.health.missing(Part::Plugin, &texts.join("; "));
        } else if matter == Matter::Kubelet {
            self.health.works(Part::Plugin);
        }
    }

    /// Whether this is in order.
    pub(super) fn is_clear(&self, matter: Matter) -> bool {
        !self.all.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&matter)
    }

    /// The plugin is switched off.
    pub(super) fn off(&self) {
        self.health.off(Part::Plugin);
    }
}
