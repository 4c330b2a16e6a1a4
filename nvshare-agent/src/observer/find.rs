//! Which processes use which libcuda files: by a look at all of them.

#![cfg_attr(test, expect(unsafe_code, reason = "a file is mapped to be found"))]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

/// How many files of one process are looked at: it may map as many as it likes.
const MOST: usize = 64;

/// Whether a file of this name is taken for the CUDA driver's library: `libcuda.so`, `libcuda.so.1`,
/// `libcuda.so.550.163.01`; not `libcudart.so`.
pub(super) fn is_libcuda(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with('/')
        && name.strip_prefix("libcuda.so").is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The file's name, seen from here: through the root of the process that knows it by `path`.
pub(super) fn through(pid: u32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root{path}"))
}

/// Opens the file that the process knows by `path`, as far as it is one. A process may put what it likes there: a link is
/// followed within its own root, and what waits for somebody when it is opened (a FIFO) is not opened.
pub(super) fn open(pid: u32, path: &str) -> io::Result<File> {
    let root = openat(
        CWD,
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)?;
    regular(place)
}

/// Opens the file at `path` on the node, as far as it is one.
pub(super) fn open_here(path: &Path) -> io::Result<File> {
    regular(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens for reading what was only found so far.
fn regular(place: OwnedFd) -> io::Result<File> {
    if FileType::from_raw_mode(fstat(&place)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(CWD, again, flags, Mode::empty())?.into())
}

/// A libcuda file that a process maps, as the kernel tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InUse {
    /// Device and inode as `/proc/PID/maps` writes them. Those that `stat` tells of the file may be others.
    pub file: String,
    /// The name it was mapped under, seen from the process's root. Another file may have it by now, or none.
    pub path: String,
    /// One of its mappings, as `/proc/PID/map_files` writes it: leads to this very file, whatever became of the name.
    pub place: String,
}

impl InUse {
    /// Opens the file, through a process that maps it.
    pub(super) fn open(&self, pid: u32) -> io::Result<File> {
        let link = format!("/proc/{pid}/map_files/{}", self.place);
        match openat(CWD, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(place) => regular(place),
            // Not allowed (CAP_CHECKPOINT_RESTORE), or no longer this mapping: by its name, if it has that still.
            Err(error) if self.path.ends_with(DELETED) => Err(error.into()),
            Err(_) => open(pid, &self.path),
        }
    }
}

/// What the kernel writes behind the name of a file that has none any more.
const DELETED: &str = " (deleted)";

/// Looks at every process; tells each libcuda file of each.
pub(super) fn scan(mut found: impl FnMut(u32, &InUse)) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Processes come and go, and kernel threads have none.
        let Ok(maps) = fs::read(format!("/proc/{pid}/maps")) else { continue };
        for library in libraries(&String::from_utf8_lossy(&maps)) {
            found(pid, &library);
        }
    }
    Ok(())
}

/// One line of `/proc/PID/maps`.
pub(super) struct Line<'a> {
    /// From where to where, as it stands there.
    pub place: &'a str,
    /// `r-xp`.
    pub permissions: &'a str,
    /// Where in the file.
    pub offset: u64,
    /// Device and inode.
    pub file: String,
    /// The name.
    pub path: &'a str,
}

/// A line about a file; `None` for others.
pub(super) fn line(text: &str) -> Option<Line<'_>> {
    // address permissions offset device inode   path
    let mut fields = text.splitn(6, ' ');
    let (place, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let (device, inode, path) = (fields.next()?, fields.next()?, fields.next()?.trim_start());
    let offset = u64::from_str_radix(offset, 16).ok()?;
    Some(Line { place, permissions, offset, file: format!("{device} {inode}"), path })
}

/// The libcuda files in the text of `/proc/PID/maps`. A file that was replaced is used by whoever has it mapped.
pub(super) fn libraries(maps: &str) -> Vec<InUse> {
    let mut libraries: Vec<InUse> = Vec::new();
    for text in maps.lines().filter(|line| line.contains("/libcuda.so")) {
        let Some(line) = line(text) else { continue };
        if is_libcuda(line.path.trim_end_matches(DELETED))
            && libraries.iter().all(|known| known.file != line.file)
        {
            libraries.push(InUse { file: line.file, path: line.path.into(), place: line.place.into() });
            if libraries.len() >= MOST {
                break;
            }
        }
    }
    libraries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drivers_library_counts() {
        for yes in ["/usr/lib/libcuda.so.1", "/x/libcuda.so", "/x/libcuda.so.550.163.01"] {
            assert!(is_libcuda(yes), "{yes}");
        }
        for no in
            ["/usr/lib/libcudart.so.12", "/x/libcuda.so-old", "libcuda.so.1", "[vdso]", "/x/libcuda.socket"]
        {
            assert!(!is_libcuda(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_opened_and_links_stay_in_the_root_of_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let open = |name: &str| open(pid, directory.path().join(name).to_str().unwrap());
        let fifo = directory.path().join("libcuda.so");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(open("libcuda.so").unwrap_err().to_string().contains("regular"));
        assert!(open_here(&fifo).unwrap_err().to_string().contains("regular"));
        assert!(open(".").is_err());
        std::fs::write(directory.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        assert!(open("link").is_ok());
        // A way out of the root, for whoever resolves it in his own.
        std::os::unix::fs::symlink(format!("/proc/{pid}/root/etc/passwd"), directory.path().join("out"))
            .unwrap();
        assert!(open("out").is_err());
    }

    #[test]
    fn a_process_names_each_of_its_libraries_once() {
        let maps = "\
7f00-7f01 r--p 00000000 fe:01 1234                       /usr/lib/x86_64-linux-gnu/libcuda.so.550.1
7f01-7f02 r-xp 00001000 fe:01 1234                       /usr/lib/x86_64-linux-gnu/libcuda.so.550.1
7f02-7f03 r-xp 00001000 fe:01 77                         /opt/my libs/libcuda.so.1
7f03-7f04 r-xp 00001000 fe:01 78                         /opt/libcuda.so.1 (deleted)
7f04-7f05 rw-p 00000000 00:00 0                          [heap]
";
        let found = libraries(maps);
        let files: Vec<(&str, &str)> =
            found.iter().map(|found| (found.file.as_str(), found.path.as_str())).collect();
        let expected = [
            ("fe:01 1234", "/usr/lib/x86_64-linux-gnu/libcuda.so.550.1"),
            ("fe:01 77", "/opt/my libs/libcuda.so.1"),
            ("fe:01 78", "/opt/libcuda.so.1 (deleted)"),
        ];
        assert_eq!(files, expected);
        assert_eq!(found[0].place, "7f00-7f01");
    }

    #[test]
    fn a_file_is_opened_through_its_mapping_when_its_name_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("libcuda.so.1");
        std::fs::write(&path, "the old one").unwrap();
        let file = File::open(&path).unwrap();
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let place = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::PRIVATE,
                &file,
                0,
            )
        }
        .unwrap();
        let other = directory.path().join("new");
        std::fs::write(&other, "another").unwrap();
        std::fs::rename(other, &path).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let used = libraries(&maps).into_iter().find(|used| used.path.contains(path.to_str().unwrap()));
        let used = used.expect("it is mapped");
        match used.open(std::process::id()) {
            Ok(file) => assert_eq!(std::io::read_to_string(file).unwrap(), "the old one"),
            Err(error) => eprintln!("SKIPPED: mappings cannot be followed here: {error}"),
        }
        // SAFETY: the mapping made above; nothing refers to it any more.
        unsafe { rustix::mm::munmap(place, 4096) }.unwrap();
    }

    #[test]
    fn a_process_with_very_many_libraries_does_not_keep_the_observer() {
        let line = |inode| format!("7f00-7f01 r--p 00000000 fe:01 {inode} /x/libcuda.so.{inode}\n");
        let maps: String = (0..1000).map(line).collect();
        assert_eq!(libraries(&maps).len(), MOST);
    }
}
