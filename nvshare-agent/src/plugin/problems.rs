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
    all: Arc<Mutex<All>>,
}

#[derive(Debug, Default)]
struct All {
    wrong: BTreeMap<Matter, String>,
    /// The kubelet has heard of the plugin at least once.
    registered: bool,
}

impl Problems {
    /// Nothing is wrong, and nothing works yet.
    pub(super) fn new(health: Health) -> Problems {
        Problems { health, all: Arc::default() }
    }

    /// How the matter stands. The plugin works when the kubelet knows it and nothing else is wrong.
    pub(super) fn set<E: ToString>(&self, matter: Matter, standing: Result<(), E>) {
        let mut all = self.lock();
        all.registered |= matter == Matter::Kubelet && standing.is_ok();
        match standing {
            Ok(()) => all.wrong.remove(&matter),
            Err(why) => all.wrong.insert(matter, why.to_string()),
        };
        if !all.wrong.is_empty() {
            let texts: Vec<&str> = all.wrong.values().map(String::as_str).collect();
            self.health.missing(Part::Plugin, &texts.join("; "));
        } else if all.registered {
            self.health.works(Part::Plugin);
        }
    }

    /// Whether this is in order.
    pub(super) fn is_clear(&self, matter: Matter) -> bool {
        !self.lock().wrong.contains_key(&matter)
    }

    /// The plugin is switched off.
    pub(super) fn off(&self) {
        self.health.off(Part::Plugin);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(health: &Health) -> Option<String> {
        let missing = health.readiness().missing.into_iter().find(|missing| missing.part == Part::Plugin);
        missing.map(|missing| missing.why)
    }

    #[test]
    fn the_plugin_works_once_it_is_registered_and_nothing_is_wrong_in_whatever_order() {
        let health = Health::new();
        let problems = Problems::new(health.clone());
        problems.set(Matter::Library, Err("no library"));
        problems.set(Matter::Kubelet, Err("no kubelet"));
        assert_eq!(why(&health).as_deref(), Some("no library; no kubelet"));
        problems.set(Matter::Kubelet, Ok::<(), String>(()));
        assert_eq!(why(&health).as_deref(), Some("no library"));
        assert!(!problems.is_clear(Matter::Library));
        problems.set(Matter::Library, Ok::<(), String>(()));
        assert_eq!(why(&health), None);
    }

    #[test]
    fn a_plugin_that_never_registered_does_not_work_yet() {
        let health = Health::new();
        let problems = Problems::new(health.clone());
        problems.set(Matter::Library, Ok::<(), String>(()));
        assert!(why(&health).is_some());
    }
}
