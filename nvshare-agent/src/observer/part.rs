//! The part of the machine that is observed, where that is not all of it: the processes of a cgroup and of those below it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What `statfs` says of a cgroup of the second version: `CGROUP2_SUPER_MAGIC`, `linux/magic.h`.
const CGROUP2: i64 = 0x6367_7270;

/// A cgroup of the second version, as it was when it was named: one that is made anew under its name is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// By which the kernel knows it.
    id: u64,
    /// As `/proc/PID/cgroup` names it.
    path: String,
}

/// Why a directory names no part.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// It, or what is said of it, cannot be read.
    #[error("cannot look at {0}: {1}")]
    Look(PathBuf, io::Error),
    /// It is something else, or a cgroup of the first version.
    #[error("{0} is no cgroup of the second version: name a directory like /sys/fs/cgroup/kubepods.slice")]
    NoCgroup(PathBuf),
}

impl Part {
    /// That of a directory, as a flag names it.
    pub fn at(directory: &str) -> Result<Part, PartError> {
        let failed = |error: io::Error| PartError::Look(directory.into(), error);
        let whole = fs::canonicalize(directory).map_err(failed)?;
        let kind = rustix::fs::statfs(&whole).map_err(|error| failed(error.into()))?.f_type;
        let none = || PartError::NoCgroup(directory.into());
        if kind as i64 != CGROUP2 {
            return Err(none());
        }
        let id = fs::metadata(&whole).map_err(failed)?.ino();
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
        Ok(Part { id, path: path_of(&mounts, &whole).ok_or_else(none)? })
    }

    /// What the eBPF programs compare a process's cgroups with.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether the process belongs to it now.
    pub(super) fn has(&self, pid: u32) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("0::")).any(|path| self.contains(path))
    }

    fn contains(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.path.trim_end_matches('/'));
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// What `/proc/PID/cgroup` calls a directory, by where that hierarchy is mounted.
fn path_of(mounts: &str, directory: &Path) -> Option<String> {
    // Number, parent, device, root, place, options, ..., "-", kind, ...
    let below = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let below = directory.strip_prefix(place).ok().filter(|_| after.starts_with("cgroup2 "))?;
        Some((place.len(), root, below))
    });
    let (_, root, below) = below.max_by_key(|(length, ..)| *length)?;
    let path = Path::new(root).join(below);
    Some(path.to_str()?.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        25 1 0:23 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
        26 1 0:23 /kubepods /pods rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_directory_is_named_as_processes_name_it() {
        let path = |directory| path_of(MOUNTS, Path::new(directory));
        assert_eq!(path("/sys/fs/cgroup/unified/kubepods/a").as_deref(), Some("/kubepods/a"));
        assert_eq!(path("/sys/fs/cgroup/unified").as_deref(), Some(""));
        assert_eq!(path("/pods/b").as_deref(), Some("/kubepods/b"));
        assert_eq!(path("/sys/fs/cgroup/cpu/kubepods"), None);
    }

    #[test]
    fn a_part_has_what_is_below_it_and_no_namesake() {
        let part = |path: &str| Part { id: 7, path: path.to_owned() };
        assert!(part("/kubepods").contains("/kubepods"));
        assert!(part("/kubepods").contains("/kubepods/burstable/pod1"));
        assert!(!part("/kubepods").contains("/kubepods-other"));
        assert!(!part("/kubepods").contains("/"));
        assert!(part("").contains("/anything"));
    }

    #[test]
    fn what_is_no_cgroup_is_refused_by_name() {
        assert!(
            Part::at("/proc")
                .unwrap_err()
                .to_string()
                .starts_with("/proc is no cgroup of the second version")
        );
        assert!(
            Part::at("/no/such/place").unwrap_err().to_string().contains("cannot look at /no/such/place")
        );
    }
}
