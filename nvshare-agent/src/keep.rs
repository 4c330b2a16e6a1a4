//! What the agent has learned of its clients and cannot ask again (A7): that one bypasses its shim, what was ordered, how
//! long it ran, how often it stalled. It is kept in a small file in the administrator's directory, which no pod sees, and
//! read when the agent starts. Processes are known by pid and start, and the file is of one boot only.
//!
//! It is an aid: a file that is missing, broken, or somebody else's is said and ignored.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nvshare_agent_core::order::{Priority, Weight};
use nvshare_agent_core::process::Process;
use nvshare_common::bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::no_space;
use crate::pods::annotations::Annotations;
use crate::proc;

/// The file's name, beside the administrator's socket.
pub const FILE: &str = "clients.json";
/// What this build writes and reads. An agent reads what another release kept before: what may be missing, in files of older
/// ones, has a default; what this one does not know it ignores. With another number everything is forgotten once.
const VERSION: u32 = 1;
/// A larger file is not ours.
const MOST_BYTES: u64 = 16 << 20;
/// How many clients are kept.
pub const MOST: usize = 8192;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// See [`VERSION`].
    version: u32,
    /// Pids and starts mean something within one boot only.
    boot: String,
    /// What a switch has cost lately, in seconds.
    #[serde(default)]
    pub switch_cost: f64,
    /// By process.
    pub clients: Vec<Remembered>,
}

/// Of one client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// Which.
    pub process: Process,
    /// Driver work was seen that its shim did not pass.
    #[serde(default)]
    pub bypass: bool,
    /// See [`nvshare_agent_core::ledger::Orders`].
    #[serde(default)]
    pub priority: Priority,
    /// See [`nvshare_agent_core::ledger::Orders`].
    #[serde(default)]
    pub weight: Weight,
    /// See [`nvshare_agent_core::ledger::Orders`].
    #[serde(default)]
    pub pinned: bool,
    /// See [`nvshare_agent_core::ledger::Orders`].
    #[serde(default)]
    pub held_out: bool,
    /// See [`nvshare_agent_core::ledger::Orders`].
    #[serde(default)]
    pub limit: Option<Bytes>,
    /// What of its pod's annotations was made into orders already.
    #[serde(default)]
    pub annotations: Annotations,
    /// How long it ran, by its weight, in seconds.
    #[serde(default)]
    pub runtime: f64,
    /// Drains in a row that stalled.
    #[serde(default)]
    pub stalls: u32,
    /// How often it was stopped, its drains stalled, its swap outs failed.
    #[serde(default)]
    pub totals: [u64; 3],
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// Others could have written it.
    #[error("others than this agent's user can write to it, or to its directory")]
    Open,
    /// Not what this build writes.
    #[error("it is not what this release writes: {0}")]
    Broken(String),
}

impl Kept {
    /// What is to be kept now.
    pub fn new(switch_cost: Duration, clients: Vec<Remembered>) -> Kept {
        Kept { version: VERSION, boot: boot(), switch_cost: switch_cost.as_secs_f64(), clients }
    }

    /// What was kept at `path`; empty when there is nothing, or it is of an earlier boot.
    pub fn read(path: &Path) -> Result<Kept, KeepError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            Err(error) => return Err(error.into()),
        };
        let directory = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
        let own = rustix::process::geteuid().as_raw();
        for held in [&file.metadata()?, &directory] {
            if held.uid() != own || held.mode() & 0o022 != 0 {
                return Err(KeepError::Open);
            }
        }
        let broken = |why: &dyn ToString| KeepError::Broken(why.to_string());
        if file.metadata()?.len() > MOST_BYTES {
            return Err(broken(&"it is too large"));
        }
        let mut kept: Kept = serde_json::from_reader(io::BufReader::new(file)).map_err(|why| broken(&why))?;
        if kept.version != VERSION {
            return Err(broken(&format!("version {}, expected {VERSION}", kept.version)));
        }
        if kept.boot != boot() {
            return Ok(Kept::default());
        }
        kept.clients.truncate(MOST);
        let sane = |client: &Remembered| client.runtime.is_finite() && client.runtime >= 0.0;
        kept.clients
            .retain(|client| sane(client) && proc::process(client.process.pid) == Some(client.process));
        Ok(kept)
    }
}

fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Writes on a thread of its own: a disk may take its time.
#[derive(Debug)]
pub struct Keeper {
    sender: SyncSender<Kept>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Writes to `path` from now on.
    pub fn start(path: PathBuf) -> io::Result<Keeper> {
        let (sender, received) = sync_channel::<Kept>(1);
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            let mut said = false;
            for kept in received {
                match write(&path, &kept) {
                    Ok(()) => said = false,
                    Err(error) if !said => {
                        said = true;
                        let why = no_space::cause(&error, &path, "a restart of the agent forgets orders and bypasses");
                        tracing::warn!(path = %path.display(), %why, "cannot keep what was learned of clients");
                    }
                    Err(_) => {}
                }
            }
        })?;
        Ok(Keeper { sender, thread })
    }

    /// Hands over what is to be kept; `false` while it is still busy with the last.
    pub fn keep(&self, kept: Kept) -> bool {
        !matches!(self.sender.try_send(kept), Err(TrySendError::Full(_)))
    }

    /// Writes the last there is to keep, and waits until it and all before it are on the disk.
    pub fn finish(self, last: Option<Kept>) {
        if let Some(kept) = last {
            // Fails only where the thread panicked, which said so.
            let _ = self.sender.send(kept);
        }
        drop(self.sender);
        let _ = self.thread.join();
    }
}

/// All or nothing: a reader finds the old file or the new one.
fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn remembered(process: Process) -> Remembered {
        Remembered {
            process,
            bypass: true,
            priority: Priority::High,
            weight: Weight::try_from(2.0).unwrap(),
            pinned: false,
            held_out: true,
            limit: Some(Bytes::GIB),
            annotations: Annotations::default(),
            runtime: 12.5,
            stalls: 1,
            totals: [1, 2, 3],
        }
    }

    fn private() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let path = directory.path().join(FILE);
        (directory, path)
    }

    #[test]
    fn what_was_kept_of_living_processes_is_read_again() {
        let (_directory, path) = private();
        assert_eq!(Kept::read(&path).unwrap(), Kept::default());
        let own = proc::process(std::process::id()).unwrap();
        let another = Process { start: own.start + 1, ..own };
        let kept = Kept::new(Duration::from_millis(250), vec![remembered(own), remembered(another)]);
        write(&path, &kept).unwrap();
        let read = Kept::read(&path).unwrap();
        assert_eq!((read.switch_cost, read.clients.as_slice()), (0.25, &[remembered(own)][..]));
    }

    #[test]
    fn what_is_handed_over_last_is_on_the_disk_at_the_end_whatever_waits_before_it() {
        let (_directory, path) = private();
        let keeper = Keeper::start(path.clone()).unwrap();
        let kept = |cost| Kept::new(Duration::from_millis(cost), Vec::new());
        let mut handed_over = 0;
        while keeper.keep(kept(handed_over)) {
            handed_over += 1;
        }
        // It is busy now: `keep` would be refused.
        keeper.finish(Some(kept(4000)));
        assert_eq!(Kept::read(&path).unwrap(), kept(4000));
        let keeper = Keeper::start(path.clone()).unwrap();
        assert!(keeper.keep(kept(5000)));
        keeper.finish(None);
        assert_eq!(Kept::read(&path).unwrap(), kept(5000));
    }

    /// Reads this file, whose one client is this process.
    fn read(text: &serde_json::Value) -> Result<Kept, KeepError> {
        let (_directory, path) = private();
        fs::write(&path, text.to_string()).unwrap();
        Kept::read(&path)
    }

    #[test]
    fn a_file_of_an_older_release_that_lacks_what_is_new_is_read() {
        let own = proc::process(std::process::id()).unwrap();
        let whole = Kept::new(Duration::from_millis(250), vec![remembered(own)]);
        let whole = serde_json::to_value(&whole).unwrap();
        for name in whole.as_object().unwrap().keys() {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(name);
            let needed = ["version", "boot", "clients"].contains(&name.as_str());
            assert_eq!(read(&less).is_err(), needed, "without {name}");
        }
        for name in whole["clients"][0].as_object().unwrap().keys() {
            let mut less = whole.clone();
            less["clients"][0].as_object_mut().unwrap().remove(name);
            assert_eq!(read(&less).is_err(), name == "process", "without {name}");
        }
    }

    #[test]
    fn a_file_of_the_first_release_means_what_it_meant() {
        let own = proc::process(std::process::id()).unwrap();
        let first = serde_json::json!({
            "version": 1, "boot": boot(), "switch_cost": 0.25, "clients": [{
                "process": {"pid": own.pid, "start": own.start}, "bypass": true, "priority": "high", "weight": 2.0,
                "pinned": true, "held_out": true, "limit": 1 << 30, "annotations": {"nvshare.com/weight": "2"},
                "runtime": 12.5, "stalls": 1, "totals": [1, 2, 3],
            }],
        });
        let (name, value) = ("nvshare.com/weight".to_owned(), "2".to_owned());
        let client =
            Remembered { pinned: true, annotations: Annotations::of([(&name, &value)]), ..remembered(own) };
        assert_eq!(read(&first).unwrap(), Kept::new(Duration::from_millis(250), vec![client]));
    }

    #[test]
    fn a_broken_file_and_one_of_others_are_not_used() {
        let (_directory, path) = private();
        for text in ["{", "[]", "{\"version\":99,\"boot\":\"\",\"switch_cost\":0,\"clients\":[]}"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Kept::read(&path), Err(KeepError::Broken(_))), "{text}");
        }
        write(&path, &Kept::new(Duration::ZERO, Vec::new())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(Kept::read(&path), Err(KeepError::Open)));
    }

    #[test]
    fn pids_of_an_earlier_boot_mean_nothing() {
        let (_directory, path) = private();
        let own = proc::process(std::process::id()).unwrap();
        let kept = Kept { boot: "another".to_owned(), ..Kept::new(Duration::ZERO, vec![remembered(own)]) };
        write(&path, &kept).unwrap();
        assert_eq!(Kept::read(&path).unwrap(), Kept::default());
    }
}
