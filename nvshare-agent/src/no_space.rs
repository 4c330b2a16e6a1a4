//! A file system that is full: whatever was to be written there, the remedy is the same.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// What the system said about `path`, and the remedy: `usual`, unless its file system is full.
pub(crate) fn cause(source: &Error, path: &Path, usual: &str) -> String {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => text(path),
        _ => format!("{source}; {usual}"),
    }
}

/// The same for what is known to be full.
pub(crate) fn text(path: &Path) -> String {
    format!("no space left on the filesystem of {}: free some", path.display())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_a_full_file_system_changes_the_remedy() {
        let said = |errno| cause(&Error::from_raw_os_error(errno), Path::new("/x/y"), "run as root");
        for full in [Errno::NOSPC, Errno::DQUOT] {
            assert_eq!(said(full.raw_os_error()), "no space left on the filesystem of /x/y: free some");
        }
        assert!(said(Errno::ACCESS.raw_os_error()).ends_with("; run as root"));
    }
}
