//! Whose a client is that looks for its agent where none can be: ours, if it looks under the name of our directory, or has our directory
//! mounted, as it is or as it was. There may be agents of others on the machine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel adds to the name of a directory that was removed and is mounted still.
const REMOVED: &str = "//deleted";

/// Our directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    directory: PathBuf,
    place: Option<Place>,
}

/// A directory of a file system, wherever that is mounted: its device and its name there.
type Place = (String, PathBuf);

impl Home {
    /// The directory of that socket.
    pub(crate) fn of(socket: &Path) -> Home {
        let directory = socket.parent().unwrap_or(Path::new("/")).to_owned();
        let whole = fs::canonicalize(&directory).unwrap_or_else(|_| directory.clone());
        Home { place: place("self", &whole), directory }
    }

    /// Whether that process, which looks for an agent in a directory of that name, looks for us.
    pub(crate) fn is_looked_for_by(&self, pid: u32, inside: &Path) -> bool {
        let file = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let same_file = || {
            let theirs = file(Path::new(&format!("/proc/{pid}/root{}", inside.display())));
            theirs.is_some() && theirs == file(&self.directory)
        };
        let same_place = || self.place.is_some() && place(&pid.to_string(), inside) == self.place;
        inside == self.directory || same_file() || same_place()
    }
}

fn place(process: &str, directory: &Path) -> Option<Place> {
    place_in(&fs::read_to_string(format!("/proc/{process}/mountinfo")).ok()?, directory)
}

fn place_in(mounts: &str, directory: &Path) -> Option<Place> {
    // Number, parent, device, root, place, options, ...
    let below = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, root, mounted) = (fields.next()?, fields.next()?, fields.next()?);
        Some((mounted.len(), device, root, directory.strip_prefix(mounted).ok()?))
    });
    // Of two in one place the later one is seen.
    let (_, device, root, below) = below.max_by_key(|(length, ..)| *length)?;
    let root = Path::new(root.strip_suffix(REMOVED).unwrap_or(root));
    Some((device.to_owned(), if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "\
        22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
        25 22 0:25 / /run rw shared:2 - tmpfs tmpfs rw\n";
    const POD: &str = "\
        90 80 0:50 / / rw - overlay overlay rw\n\
        91 90 0:25 /nvshare//deleted /var/nv ro - tmpfs tmpfs rw\n\
        92 90 0:25 /other /run/nvshare ro - tmpfs tmpfs rw\n";

    #[test]
    fn a_directory_is_the_same_wherever_it_is_mounted_and_after_its_end() {
        let ours = place_in(NODE, Path::new("/run/nvshare"));
        assert_eq!(ours, Some(("0:25".to_owned(), "/nvshare".into())));
        assert_eq!(place_in(POD, Path::new("/var/nv")), ours);
        assert_ne!(place_in(POD, Path::new("/run/nvshare")), ours);
        assert_ne!(place_in(POD, Path::new("/nvshare")), ours);
        assert_eq!(place_in("", Path::new("/run/nvshare")), None);
    }

    #[test]
    fn who_looks_under_our_name_or_in_our_directory_looks_for_us() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::of(&directory.path().join("agent.sock"));
        let pid = std::process::id();
        assert!(home.is_looked_for_by(pid, directory.path()));
        assert!(home.is_looked_for_by(u32::MAX, directory.path()), "a process that is gone, by the name");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        assert!(home.is_looked_for_by(pid, &link), "by another name");
        assert!(!home.is_looked_for_by(pid, &directory.path().join("other")));
        assert!(!home.is_looked_for_by(pid, Path::new("/run/nvshare")));
    }
}
