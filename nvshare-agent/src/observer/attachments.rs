//! The libcuda files that are observed: each once, however many names it has and processes use it; and in each the
//! functions that no process has put other code into.

mod other_code;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nvshare_agent_core::observation::Attachment;
use nvshare_common::event::{SITES, SITES_OF_LIBRARY};
use nvshare_common::probe::PROBES;

use other_code::look_before;

use super::attached::{Attached, How, Sites, attach, stepped};
use super::find::{self, InUse};
use super::guard::Guard;
use super::library::{Identity, Library, LibraryError};
use super::part::Part;
use super::programs::Programs;
use super::rewrites::Rewrites;
use super::seccomp::{self, Returns};
use super::share::{self, Owner};
use super::watch::Coverage;
use crate::clock;

/// How many that cannot be observed are remembered.
const REMEMBERED: usize = 1024;
/// To read a file takes tens of milliseconds, in which nothing else is looked at: of the time after it the files of the same
/// group (a container's) wait for so many times as long,
const SHARE: u32 = 4;
/// as far as that is more than this: the first dozen are read at once.
const AHEAD: Duration = Duration::from_secs(3);

const _: () = assert!(PROBES.len() <= SITES_OF_LIBRARY, "each function has a place in the count of hits");

/// All of them.
pub(super) struct Attachments {
    programs: Programs,
    /// Whose files are looked for; none: everybody's. Once a probe is in a file, all that map it matter.
    part: Option<Part>,
    returns: Returns,
    files: Vec<Attached>,
    /// Files that cannot be observed, as they were when they were read.
    useless: HashSet<(Identity, SystemTime)>,
    changed: bool,
    refused: bool,
    problems: Vec<String>,
    /// Before when no more files of a group are read.
    turns: HashMap<String, Instant>,
    postponed: bool,
    looks: u64,
    gaps: u64,
    rewrites: Rewrites,
    /// Named by flags, and to be read again.
    again: Vec<PathBuf>,
}

impl Attachments {
    /// None yet. Tries first whether return probes may be used here.
    pub(super) fn new(programs: Programs, part: Option<Part>) -> Attachments {
        let returns = seccomp::try_returns(&programs);
        if let Returns::Unsound(why) = &returns {
            tracing::warn!("{why}");
        }
        Attachments {
            programs,
            part,
            returns,
            files: Vec::new(),
            useless: HashSet::new(),
            changed: false,
            refused: false,
            problems: Vec::new(),
            turns: HashMap::new(),
            postponed: false,
            looks: 0,
            gaps: 0,
            rewrites: Rewrites::new(),
            again: Vec::new(),
        }
    }

    /// The object, for programs that are not about files.
    pub(super) fn ebpf(&mut self) -> &mut aya::Ebpf {
        self.programs.ebpf()
    }

    /// A file that a flag names.
    pub(super) fn named(&mut self, path: &Path) {
        let opened = find::open_here(path).map_err(|error| LibraryError::Open(path.to_owned(), error));
        if let Err(error) = opened.and_then(|file| self.add(path, file, None)) {
            tracing::warn!(%error, "not observed");
            self.problems.push(error.to_string());
            self.changed = true;
        }
    }

    /// A file that a process maps, or one whose protection there has changed.
    pub(super) fn found(&mut self, pid: u32, used: &InUse) {
        if pid == std::process::id() {
            return;
        }
        if let Some(index) = self.files.iter().position(|known| known.files.contains(&used.file)) {
            self.files[index].used = Instant::now();
            self.compare(index, pid, &used.file);
            return;
        }
        let name = find::through(pid, &used.path);
        let opened = used.open(pid).map_err(|error| LibraryError::Open(name.clone(), error));
        match opened.and_then(|file| self.add(&name, file, Some((pid, used)))) {
            Ok(()) => {}
            // Gone again already, or not what its name says.
            Err(error) => tracing::debug!(pid, path = used.path, %error, "not observed"),
        }
    }

    fn add(&mut self, path: &Path, file: File, by: Option<(u32, &InUse)>) -> Result<(), LibraryError> {
        let wrong = |error| LibraryError::Open(path.to_owned(), error);
        let identity = Library::identify(&file).map_err(wrong)?;
        // What is no driver's library once is not read again before it changes.
        let version = (identity, file.metadata().and_then(|file| file.modified()).map_err(wrong)?);
        if by.is_some() && self.useless.contains(&version) {
            return Ok(());
        }
        if let Some(index) = self.files.iter().position(|known| known.library.identity == identity) {
            let known = &mut self.files[index];
            known.used = Instant::now();
            match by {
                Some((pid, used)) => {
                    share::remember(&mut known.files, &used.file);
                    self.compare(index, pid, &used.file);
                }
                None => known.owner = None,
            }
            return Ok(());
        }
        // Only here: whoever maps a file that has probes is compared with it, under whatever name (A8).
        if by.is_some_and(|(pid, _)| self.part.as_ref().is_some_and(|part| !part.has(pid))) {
            return Ok(());
        }
        let owner = by.map(|(pid, _)| Owner::of(pid));
        if let Some(owner) = &owner
            && !self.make_room(owner, path)
        {
            return Ok(());
        }
        if let Some(owner) = &owner
            && self.turns.get(&owner.group).is_some_and(|turn| *turn > Instant::now() + AHEAD)
        {
            self.postponed = true;
            return Ok(());
        }
        let begun = Instant::now();
        // First: what is written from now on is heard of.
        let watch = self.rewrites.watch(&file);
        let read = Library::read(path, file, identity)
            .and_then(|library| Ok((Guard::of(&library).map_err(wrong)?, library)));
        if let Some(owner) = &owner {
            if self.turns.len() >= REMEMBERED {
                self.turns.clear();
            }
            let turn = self.turns.entry(owner.group.clone()).or_insert(begun);
            *turn = (*turn).max(begun) + SHARE * begun.elapsed();
        }
        let (guard, library) = match read {
            Ok(read) => read,
            Err(error) => {
                if self.useless.len() >= REMEMBERED {
                    self.useless.clear();
                }
                self.useless.insert(version);
                return Err(error);
            }
        };
        let mut files = Vec::new();
        if let Some((_, used)) = by {
            files.push(used.file.clone());
        }
        let patched = look_before(&library, &guard, self.looks, &mut files);
        let mut attached = Attached {
            library,
            guard,
            files,
            how: How::Not(String::new()),
            since: clock::now(),
            watch,
            owner,
            used: Instant::now(),
            withheld: patched.values().flat_map(|(places, _)| places).copied().collect(),
            patched,
            sites: None,
        };
        let same = self.counts_elsewhere(&attached.library);
        attached.sites = if same { None } else { self.free_sites() };
        attached.how = if same { How::Same } else { attach(&mut self.programs, &self.returns, &attached) };
        match &attached.how {
            How::Links(links) => tracing::info!(
                library = %path.display(),
                functions = attached.library.points.len() - links.failed.len() - attached.withheld.len(),
                stepped = stepped(&attached.library),
                "observing a CUDA driver"
            ),
            How::Same => tracing::debug!(library = %path.display(), "observed already, under another name"),
            How::Not(why) => tracing::warn!(library = %path.display(), why, "not observed"),
        }
        for refusal in attached.withheld_because() {
            tracing::warn!(library = %path.display(), "{refusal}");
        }
        self.files.push(attached);
        self.changed = true;
        // Whoever changed its code between the look and the probes.
        let index = self.files.len() - 1;
        if let Some((pid, used)) = by {
            self.compare(index, pid, &used.file);
        }
        Ok(())
    }

    /// Places in the count of hits that no file has.
    fn free_sites(&self) -> Option<Sites> {
        let taken = |first: u32| {
            self.files.iter().filter_map(|file| file.sites.as_ref()).any(|sites| sites.first == first)
        };
        let first = (1..SITES / SITES_OF_LIBRARY).map(|block| (block * SITES_OF_LIBRARY) as u32);
        let first = first.into_iter().find(|first| !taken(*first))?;
        let before = (0..SITES_OF_LIBRARY as u32).map(|place| self.programs.hits(first + place));
        Some(Sites { first, before: before.collect() })
    }

    /// Whether one more file of this owner is observed; another one's may have to go.
    fn make_room(&mut self, owner: &Owner, path: &Path) -> bool {
        let owners: Vec<Option<&Owner>> = self.files.iter().map(|file| file.owner.as_ref()).collect();
        match share::room(&owners, owner, |index| self.files[index].used) {
            share::Room::There => true,
            share::Room::For(index) => {
                let gone = self.files.remove(index);
                tracing::debug!(library = %gone.library.path.display(), "no longer observed: others want room");
                true
            }
            share::Room::None(why) => {
                if !std::mem::replace(&mut self.refused, true) {
                    let why = format!("{why}: {} and others are not observed", path.display());
                    tracing::warn!("{why}");
                    self.problems.push(why);
                    self.changed = true;
                }
                false
            }
        }
    }

    /// Looks again at files that were taken for others by the breakpoints in them: these may have been somebody else's (an
    /// agent's that this one replaces) in a copy of the same library, and are gone with him.
    pub(super) fn look_at_the_same(&mut self) {
        for index in 0..self.files.len() {
            let file = &self.files[index];
            if !matches!(file.how, How::Same) || self.counts_elsewhere(&file.library) {
                continue;
            }
            let sites = self.free_sites();
            let file = &mut self.files[index];
            (file.sites, file.since) = (sites, clock::now());
            file.how = attach(&mut self.programs, &self.returns, file);
            self.gaps += 1;
            self.changed = true;
        }
    }

    /// Whether another file has the same contents, and all its probes are seen here as well: then they are the same to the
    /// kernel, and what is called here is counted there.
    fn counts_elsewhere(&self, library: &Library) -> bool {
        self.files.iter().any(|other| {
            let How::Links(links) = &other.how else { return false };
            let points = other.points();
            let probes = points.len() - links.failed.len();
            other.library.looks_like(library) && probes > 0 && library.probed_at(points) >= probes
        })
    }

    /// Takes every probe away.
    pub(super) fn detach(&mut self) {
        self.files.clear();
        self.changed = true;
    }

    /// Since when there is something that is observed, and how often something was not since.
    pub(super) fn coverage(&self) -> Coverage {
        let observed = self.files.iter().filter(|file| {
            matches!(&file.how, How::Links(links) if links.failed.is_empty()) && file.withheld.is_empty()
        });
        Coverage { since: observed.map(|file| file.since).min(), gaps: self.gaps }
    }

    /// Files whose contents changed: what was decoded is not true of them any more. They are read anew when they are met
    /// again.
    pub(super) fn rewritten(&mut self) {
        for watch in self.rewrites.read() {
            let gone = self
                .files
                .extract_if(.., |file| file.watch.as_ref().is_some_and(|watched| watched.number() == watch));
            for file in gone {
                tracing::warn!(library = %file.library.path.display(), "written to while observed: read anew");
                if file.owner.is_none() {
                    self.again.push(file.library.path.clone());
                }
            }
            self.gaps += 1;
            self.changed = true;
        }
    }

    /// Whether files were left for later since this was last asked.
    pub(super) fn postponed(&mut self) -> bool {
        std::mem::take(&mut self.postponed)
    }

    /// Readable when a file's contents changed.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.rewrites.descriptor()
    }

    /// Whether [`Attachments::list`] or [`Attachments::problems`] are others than when this was last asked.
    pub(super) fn changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is missing.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        if let Returns::Unsound(why) = &self.returns {
            problems.push(why.clone());
        }
        problems
    }

    /// All files.
    pub(super) fn list(&self) -> Vec<Attachment> {
        self.files.iter().map(|file| file.show(&self.programs)).collect()
    }
}
