//! Cgroups as a kubelet and a container runtime make them, below one that belongs to the test and goes with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// What ended is out of its cgroup a moment later.
const LIMIT: Duration = Duration::from_secs(10);

/// A cgroup of the test's own, in every hierarchy in which something is made below it. It is removed with this value,
/// when everything that ran there has ended.
#[derive(Debug)]
pub struct Cgroups {
    top: String,
}

impl Cgroups {
    /// One that nobody else has. Nothing is made yet.
    pub fn new() -> Cgroups {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Cgroups { top: format!("nvshare-test-{}-{number}", std::process::id()) }
    }

    /// The path below the root of all cgroups, for a container runtime.
    pub fn path(&self, below: &str) -> String {
        format!("/{}/{below}", self.top)
    }

    /// The path of a container of a burstable pod, below ours, as the kubelet and containerd name it under systemd.
    pub fn container(&self, uid: &str, id: &str) -> String {
        let uid = uid.replace('-', "_");
        let burstable = "kubepods.slice/kubepods-burstable.slice";
        self.path(&format!("{burstable}/kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope"))
    }

    /// Makes `below`, in the first hierarchy that lets us: its directory. `None` where none does.
    pub fn make(&self, below: &str) -> Option<PathBuf> {
        // Of the others, one wants to be configured before anybody can enter.
        let usual = ["", "unified", "pids", "memory"].map(|name| Path::new(ROOT).join(name));
        usual.into_iter().filter(|path| is_cgroup(path)).find_map(|hierarchy| {
            let path = hierarchy.join(&self.top).join(below);
            fs::create_dir_all(&path).ok()?;
            Some(path)
        })
    }
}

impl Default for Cgroups {
    fn default() -> Cgroups {
        Cgroups::new()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let end = Instant::now() + LIMIT;
        for hierarchy in hierarchies() {
            let top = hierarchy.join(&self.top);
            while top.exists() {
                match remove(&top) {
                    Ok(()) => break,
                    Err(error) if Instant::now() > end => {
                        eprintln!("cannot remove the cgroup {}: {error}", top.display());
                        break;
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        }
    }
}

fn is_cgroup(path: &Path) -> bool {
    path.join("cgroup.procs").exists()
}

/// The one of version 2, or those of version 1.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if is_cgroup(root) {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| is_cgroup(path)).collect()
}

/// Removes it and what is below. Files in a cgroup go with it.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
