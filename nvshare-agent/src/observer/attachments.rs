//! The libcuda files that are observed: each once, however many names it has and processes use it.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::find;
use super::library::{Identity, Library, LibraryError};
use super::programs::{Links, Programs};
use super::seccomp::{self, Returns};
use crate::observation::Attachment;

/// No more files than this are observed: a container may hold as many copies as it likes.
const MOST: usize = 64;
/// How many that cannot be observed are remembered.
const REMEMBERED: usize = 1024;

/// One file.
struct Attached {
    library: Library,
    how: How,
    /// Named by a flag: observed for ever.
    named: bool,
    used: Instant,
}

enum How {
    /// Observed.
    Links(Links),
    /// The same file to the kernel as another one that is.
    Same,
    /// Not observed; why.
    Not(String),
}

/// All of them.
pub(super) struct Attachments {
    programs: Programs,
    returns: Returns,
    files: Vec<Attached>,
    /// Files that cannot be observed, as they were when they were read.
    useless: HashSet<(Identity, SystemTime)>,
    changed: bool,
    refused: bool,
    problems: Vec<String>,
}

impl Attachments {
    /// None yet. Tries first whether return probes may be used here.
    pub(super) fn new(programs: Programs) -> Attachments {
        let returns = seccomp::try_returns(&programs);
        if let Returns::Unsound(why) = &returns {
            tracing::warn!("{why}");
        }
        Attachments {
            programs,
            returns,
            files: Vec::new(),
            useless: HashSet::new(),
            changed: false,
            refused: false,
            problems: Vec::new(),
        }
    }

    /// The object, for programs that are not about files.
    pub(super) fn ebpf(&mut self) -> &mut aya::Ebpf {
        self.programs.ebpf()
    }

    /// A file that a flag names.
    pub(super) fn named(&mut self, path: &Path) {
        let opened = find::open_here(path).map_err(|error| LibraryError::Open(path.to_owned(), error));
        if let Err(error) = opened.and_then(|file| self.add(path, file, true)) {
            tracing::warn!(%error, "not observed");
            self.problems.push(error.to_string());
            self.changed = true;
        }
    }

    /// A file that a process maps. `false` if it could not be looked at through this process.
    pub(super) fn found(&mut self, pid: u32, path: &str) -> bool {
        if pid == std::process::id() {
            return false;
        }
        let name = find::through(pid, path);
        let opened = find::open(pid, path).map_err(|error| LibraryError::Open(name.clone(), error));
        match opened.and_then(|file| self.add(&name, file, false)) {
            Ok(()) => true,
            // Gone again already, or not what its name says.
            Err(error) => {
                tracing::debug!(pid, path, %error, "not observed");
                false
            }
        }
    }

    fn add(&mut self, path: &Path, file: File, named: bool) -> Result<(), LibraryError> {
        let wrong = |error| LibraryError::Open(path.to_owned(), error);
        let identity = Library::identify(&file).map_err(wrong)?;
        // What is no driver's library once is not read again before it changes.
        let version = (identity, file.metadata().and_then(|file| file.modified()).map_err(wrong)?);
        if !named && self.useless.contains(&version) {
            return Ok(());
        }
        if let Some(known) = self.files.iter_mut().find(|known| known.library.identity == identity) {
            known.used = Instant::now();
            known.named |= named;
            return Ok(());
        }
        if self.files.len() >= MOST {
            if !self.refused {
                self.refused = true;
                let why = format!(
                    "{MOST} libcuda files are observed already: {} and others are not",
                    path.display()
                );
                tracing::warn!("{why}");
                self.problems.push(why);
                self.changed = true;
            }
            return Ok(());
        }
        let library = match Library::read(path, file, identity) {
            Ok(library) => library,
            Err(error) => {
                if self.useless.len() >= REMEMBERED {
                    self.useless.clear();
                }
                self.useless.insert(version);
                return Err(error);
            }
        };
        let same =
            library.already_probed() && self.files.iter().any(|other| other.library.looks_like(&library));
        let how = if same { How::Same } else { attach(&mut self.programs, &self.returns, &library) };
        let stepped = stepped(&library);
        match &how {
            How::Links(links) => tracing::info!(
                library = %path.display(),
                functions = library.points.len() - links.failed.len(),
                stepped,
                "observing a CUDA driver"
            ),
            How::Same => tracing::debug!(library = %path.display(), "observed already, under another name"),
            How::Not(why) => tracing::warn!(library = %path.display(), why, "not observed"),
        }
        self.files.push(Attached { library, how, named, used: Instant::now() });
        self.changed = true;
        Ok(())
    }

    /// Looks again at files that were taken for others by the breakpoints in them: these may have been somebody else's (an
    /// agent's that this one replaces) in a copy of the same library, and are gone with him.
    pub(super) fn look_again(&mut self) {
        for file in &mut self.files {
            if matches!(file.how, How::Same) && !file.library.already_probed() {
                file.how = attach(&mut self.programs, &self.returns, &file.library);
                self.changed = true;
            }
        }
    }

    /// Lets go of files that no process used for so long.
    pub(super) fn drop_unused(&mut self, time: Duration) {
        let before = self.files.len();
        self.files.retain(|file| file.named || file.used.elapsed() < time);
        self.changed |= self.files.len() != before;
    }

    /// Takes every probe away.
    pub(super) fn detach(&mut self) {
        self.files.clear();
        self.changed = true;
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
        self.files.iter().map(|file| attachment(file, self.programs.multi())).collect()
    }
}

fn attach(programs: &mut Programs, returns: &Returns, library: &Library) -> How {
    let links = programs.attach(library, *returns == Returns::Sound);
    if links.failed.len() == library.points.len() {
        return How::Not(links.failed.first().map_or_else(String::new, ToString::to_string));
    }
    How::Links(links)
}

/// How many probes cost 20 times as much as others.
fn stepped(library: &Library) -> u32 {
    library.points.iter().filter(|point| !point.emulated).count() as u32
}

fn attachment(file: &Attached, multi: bool) -> Attachment {
    let (functions, refused, problem) = match &file.how {
        How::Links(links) => {
            let refused = links.failed.iter().map(ToString::to_string).collect();
            (file.library.points.len() - links.failed.len(), refused, None)
        }
        How::Same => (file.library.points.len(), Vec::new(), None),
        How::Not(why) => (0, Vec::new(), Some(why.clone())),
    };
    Attachment {
        path: file.library.path.display().to_string(),
        functions: functions as u32,
        refused,
        stepped: if functions == 0 { 0 } else { stepped(&file.library) },
        means: if multi { "uprobe_multi" } else { "single" }.into(),
        problem,
    }
}
