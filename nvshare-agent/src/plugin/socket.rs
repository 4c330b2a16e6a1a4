//! The plugin's own socket, in the kubelet's directory, and how to tell whether a socket is still the same one.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::{fs, io::ErrorKind};

use tokio::net::UnixListener;

use crate::no_space;

/// A file that another one at the same path is not. The time tells apart two that got the same inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Identity {
    /// Of the file at `path`, if there is one.
    pub(super) fn of(path: &Path) -> Option<Identity> {
        let file = fs::symlink_metadata(path).ok()?;
        Some(Identity { device: file.dev(), inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) })
    }
}

/// Why the plugin has no socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// Another plugin.
    #[error(
        "another device plugin answers on {}: stop the other agent on this node, or switch this one's plugin off with \
         --device-plugin=off", path.display()
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// No socket.
    #[error(
        "cannot listen on {}: {}", path.display(), no_space::cause(source, path,
            "run the agent as root, with the kubelet's directory mounted into its container, writable (--kubelet-dir)")
    )]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening socket. Its file goes away with it, if it is still there.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    identity: Option<Identity>,
}

impl Socket {
    /// Listens on `path`, in the place of a socket on which nobody listens any more.
    pub(super) fn bind(path: &Path) -> Result<(Socket, UnixListener), SocketError> {
        let failed = |source| SocketError::Bind { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(file) if !file.file_type().is_socket() => {
                let why = "a file that is no socket is in its place: remove it";
                return Err(failed(io::Error::new(ErrorKind::AlreadyExists, why)));
            }
            Ok(_) if net::UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Only the kubelet may ask for what pods get.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok((Socket { path: path.to_owned(), identity: Identity::of(path) }, listener))
    }

    /// Whether the kubelet can still reach it: a kubelet that starts removes all sockets of plugins.
    pub(super) fn is_there(&self) -> bool {
        Identity::of(&self.path) == self.identity
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A successor's is not removed.
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_by_a_dead_agent_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvshare.sock");
        drop(net::UnixListener::bind(&path).unwrap());
        let (socket, _listener) = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("--device-plugin=off"), "{error}");
        assert!(socket.is_there());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvshare.sock");
        fs::write(&path, "mine").unwrap();
        assert!(Socket::bind(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn only_its_own_file_goes_away_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nvshare.sock");
        let (first, listener) = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        drop(listener);
        assert!(!first.is_there());
        let (second, _listener) = Socket::bind(&path).unwrap();
        drop(first);
        assert!(second.is_there());
        drop(second);
        assert!(!path.exists());
    }
}
