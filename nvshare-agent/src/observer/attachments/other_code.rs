//! Processes that have put other code over an observed file's functions: they are found by comparing, and no probe is where they
//! have it, as long as they live.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::super::attached::{How, attach};
use super::super::guard::Guard;
use super::super::library::Library;
use super::super::{find, share};
use super::Attachments;

/// Of so many processes with code of their own it is remembered where they have it.
const PATCHED: usize = 4096;

impl Attachments {
    /// Compares what a process has at the places with the file, and takes the probes away from where it has other code.
    pub(super) fn compare(&mut self, index: usize, pid: u32, file: &str) {
        let attached = &mut self.files[index];
        let Ok(differing) = attached.guard.differing(pid, file) else { return };
        if differing.is_empty() {
            // Had it other code, then its probes come back with the next look at all processes, not before: nobody can
            // have them taken and put back all the time.
            return;
        }
        let known = attached.patched.contains_key(&pid);
        if known || attached.patched.len() < PATCHED {
            attached.patched.insert(pid, (differing, self.looks));
        } else {
            // Too many to remember each: nowhere then. No process has that number.
            attached.patched.insert(0, ((0..attached.library.points.len()).collect(), self.looks));
        }
        self.withhold(index);
    }

    /// Takes probes away, or puts them back, after processes with other code came or went.
    pub(super) fn withhold(&mut self, index: usize) {
        let attached = &mut self.files[index];
        let withheld: BTreeSet<usize> =
            attached.patched.values().flat_map(|(places, _)| places).copied().collect();
        if withheld == attached.withheld {
            return;
        }
        let fewer = withheld.is_superset(&attached.withheld);
        attached.withheld = withheld;
        self.gaps += 1;
        if matches!(attached.how, How::Links(_)) {
            // First away, then the others again: calls in between are not seen, but none is counted twice.
            attached.how = How::Not(String::new());
            attached.how = attach(&mut self.programs, &self.returns, attached);
        }
        for refusal in attached.withheld_because().into_iter().filter(|_| fewer) {
            tracing::warn!(library = %attached.library.path.display(), "{refusal}");
        }
        self.changed = true;
    }

    /// A look at all processes begins: those with other code that are not met again are gone.
    pub(in super::super) fn begin_look(&mut self) {
        self.looks += 1;
        for path in std::mem::take(&mut self.again) {
            self.named(&path);
        }
    }

    /// A look at all processes has ended.
    pub(in super::super) fn end_look(&mut self, unused: Duration) {
        let before = self.files.len();
        self.files.retain(|file| file.owner.is_none() || file.used.elapsed() < unused);
        self.changed |= self.files.len() != before;
        for index in 0..self.files.len() {
            let looks = self.looks;
            self.files[index].patched.retain(|_, (_, seen)| *seen == looks);
            self.withhold(index);
        }
        self.look_at_the_same();
    }
}

/// Compares all processes that map a file with it, before it gets any probe. Learns how their maps call it.
pub(super) fn look_before(
    library: &Library,
    guard: &Guard,
    looks: u64,
    files: &mut Vec<String>,
) -> BTreeMap<u32, (Vec<usize>, u64)> {
    let mut patched = BTreeMap::new();
    let mut known: HashMap<String, bool> = files.iter().map(|file| (file.clone(), true)).collect();
    let looked = find::scan(|pid, used| {
        let this = *known
            .entry(used.file.clone())
            .or_insert_with(|| used.open(pid).is_ok_and(|file| library.may_be(&file)));
        if !this {
            return;
        }
        let Ok(differing) = guard.differing(pid, &used.file) else { return };
        if differing.len() > library.points.len() / 2 && !files.contains(&used.file) {
            // Another file of the same size and age.
            return;
        }
        share::remember(files, &used.file);
        if !differing.is_empty() && patched.len() < PATCHED {
            patched.insert(pid, (differing, looks));
        }
    });
    if let Err(error) = looked {
        tracing::warn!(%error, "cannot look at the node's processes (/proc)");
    }
    patched
}
