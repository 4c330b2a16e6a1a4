//! What pods need on the node: the library, and the file that becomes their `/etc/ld.so.preload`. The kubelet would make
//! an empty directory of a path that is not there, so it is looked at before anything is handed out.

use std::io;
use std::path::{Path, PathBuf};

use super::allocate::{Hand, LIBRARY, PRELOAD_FILE, preload_line};
use super::file::replace;
use super::options::Preload;
use crate::no_space;

/// Why pods cannot be given the library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// No library.
    #[error(
        "pods cannot be given the library: {} cannot be read ({source}); the DaemonSet's init container puts it on \
         the node, the agent's container must see it at the same path, or name its directory with --library-dir",
        path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not for `/etc/ld.so.preload`.
    #[error(
        "pods cannot be given the library: cannot write {}, which becomes their /etc/ld.so.preload: {}", path.display(),
        no_space::cause(source, path, &format!(
            "mount the library's directory into the agent's container writable, or make that file on the node with the one \
             line {}", preload_line().trim_end()))
    )]
    Preload {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Checks that everything is there, and writes the preload file where it is not.
pub fn check(hand: &Hand) -> Result<(), LibraryError> {
    let path = hand.library.join(LIBRARY);
    regular(&path).map_err(|source| LibraryError::Missing { path, source })?;
    if hand.preload == Preload::Env {
        return Ok(());
    }
    let path = hand.library.join(PRELOAD_FILE);
    replace(&path, &preload_line()).map_err(|source| LibraryError::Preload { path, source })
}

fn regular(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_file() { Ok(()) } else { Err(io::Error::other("it is no file")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_the_remedy_and_found_when_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let hand = Hand {
            socket: "/run/nvshare/agent.sock".into(),
            library: directory.path().into(),
            preload: Preload::LdSoPreload,
        };
        let error = check(&hand).unwrap_err().to_string();
        assert!(error.contains("libnvshare.so") && error.contains("--library-dir"), "{error}");
        std::fs::create_dir(directory.path().join(LIBRARY)).unwrap();
        assert!(check(&hand).unwrap_err().to_string().contains("no file"));
        std::fs::remove_dir(directory.path().join(LIBRARY)).unwrap();
        std::fs::write(directory.path().join(LIBRARY), "").unwrap();
        check(&hand).unwrap();
        assert_eq!(std::fs::read_to_string(directory.path().join(PRELOAD_FILE)).unwrap(), preload_line());
        // Something in the place of the preload file that cannot be replaced.
        std::fs::remove_file(directory.path().join(PRELOAD_FILE)).unwrap();
        std::fs::create_dir(directory.path().join(PRELOAD_FILE)).unwrap();
        let error = check(&hand).unwrap_err().to_string();
        assert!(error.contains("/var/lib/nvshare/current/libnvshare.so"), "{error}");
        check(&Hand { preload: Preload::Env, ..hand }).unwrap();
    }
}
