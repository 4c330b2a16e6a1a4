//! Handles that travel between processes as file descriptors: a file per exported handle, locked (shared) through every
//! descriptor given out, so that the lock is gone exactly when the last duplicate in any process is closed.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::control::{OpenError, failed};
use crate::ledger::HandleId;

const MAGIC: [u8; 8] = *b"nvs-hndl";

/// Why a descriptor does not give a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The descriptor is not one of an exported handle.
    #[error("the descriptor was not made by cuMemExportToShareableHandle")]
    NotAHandle,
    /// It belongs to cards of another directory, or its memory is gone.
    #[error("the memory behind the descriptor does not exist on this card")]
    Gone,
}

fn path(directory: &Path, id: HandleId) -> PathBuf {
    directory.join(format!("export-{:x}", id.0))
}

/// Makes a descriptor for the handle. Call with the ledger locked: [`in_use`] must not run between open and lock.
pub(crate) fn descriptor(directory: &Path, id: HandleId, tag: [u8; 16]) -> Result<OwnedFd, OpenError> {
    let path = path(directory, id);
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("make", &path))?;
    flock(&file, FlockOperation::NonBlockingLockShared)
        .map_err(|error| failed("lock", &path)(error.into()))?;
    let mut content = [0; 32];
    content[..8].copy_from_slice(&MAGIC);
    content[8..16].copy_from_slice(&id.0.to_le_bytes());
    content[16..].copy_from_slice(&tag);
    file.write_all_at(&content, 0).map_err(failed("write", &path))?;
    Ok(file.into())
}

/// Which handle a descriptor stands for.
pub(crate) fn read(descriptor: BorrowedFd<'_>, tag: [u8; 16]) -> Result<HandleId, ImportError> {
    let mut content = [0; 32];
    match rustix::io::pread(descriptor, &mut content, 0) {
        Ok(32) if content[..8] == MAGIC => {}
        _ => return Err(ImportError::NotAHandle),
    }
    if content[16..] != tag {
        return Err(ImportError::Gone);
    }
    Ok(HandleId(u64::from_le_bytes(content[8..16].try_into().expect("eight bytes"))))
}

/// Whether any descriptor of the handle is open anywhere; removes the file if not.
pub(crate) fn in_use(directory: &Path, id: HandleId) -> bool {
    let path = path(directory, id);
    let Ok(file) = File::open(&path) else { return false };
    let free = flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok();
    if free {
        let _ = fs::remove_file(&path);
    }
    !free
}
