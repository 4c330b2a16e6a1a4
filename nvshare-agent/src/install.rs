//! `install-shim`: puts the released library on the node for pods to mount. A file that running pods may have mapped is
//! never written to: everything is written beside its place, synced and renamed, and what is there stays.
//!
//! ```text
//! /var/lib/nvshare/current -> 0.1.0
//! /var/lib/nvshare/0.1.0/libnvshare.so
//!                       /ld.so.preload                     for pods to mount as /etc/ld.so.preload
//!                       /lib/x86_64-linux-gnu/libnvshare.so, /lib64/libnvshare.so, /lib/libnvshare.so
//!                                                          what the loader makes of $LIB, as links
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{FlockOperation, flock};

use crate::no_space;

/// Where the directory of a release appears in pods; `ld.so.preload` names the library there.
pub const IN_PODS: &str = "/var/lib/nvshare/current";
/// The library's name, on the node and in pods.
pub const LIBRARY: &str = "libnvshare.so";
/// The file that pods mount as `/etc/ld.so.preload`.
pub const PRELOAD: &str = "ld.so.preload";
/// The link to the directory of the release that new pods get.
pub const CURRENT: &str = "current";

/// What `$LIB` is, and the way back: on Arch, on Debian and its like, on Red Hat and SUSE.
const LIB: [(&str, &str); 3] = [
    ("lib", "../libnvshare.so"),
    ("lib/x86_64-linux-gnu", "../../libnvshare.so"),
    ("lib64", "../libnvshare.so"),
];
/// How names of files begin that are not finished.
const UNFINISHED: &str = ".unfinished-";

/// `install-shim`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The library to install
    #[arg(long, value_name = "FILE", default_value = "/usr/lib/nvshare/libnvshare.so")]
    pub from: PathBuf,
    /// The directory on the node that keeps every release; this one goes into a directory of its own
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/nvshare")]
    pub to: PathBuf,
    /// Where pods find the directory of the release
    #[arg(long, value_name = "DIRECTORY", default_value = IN_PODS)]
    pub in_pods: PathBuf,
}

/// Why the library is not on the node.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is nothing to install.
    #[error("cannot read {}, the library to install: {source}; name it with --from", path.display())]
    Read {
        /// Of the library.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{} is no shared library of this machine (it does not begin as a 64-bit ELF file): expected libnvshare.so of \
         `cargo xtask dist`",
        .0.display()
    )]
    NoLibrary(PathBuf),
    /// Another file of the same release.
    #[error(
        "{} is another file of the same release; running pods may have it mapped, so it is not replaced. Install under a \
         new version, or, once no pod of this node uses it, remove {} and start again",
        path.display(), directory.display()
    )]
    Differs {
        /// The file that is there.
        path: PathBuf,
        /// Of the release.
        directory: PathBuf,
    },
    /// `current` is none of ours.
    #[error("{} is there and is no symbolic link: expected the link to a release; remove it", .0.display())]
    NoLink(PathBuf),
    /// No room.
    #[error(
        "cannot write {}: {}, and start again; nothing that was there has changed", path.display(), no_space::text(path)
    )]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {act} {}: {source}; run as root, with the node's directory mounted for writing", path.display())]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What an installation found and did.
#[derive(Debug, PartialEq, Eq)]
pub struct Installed {
    /// The release's directory.
    pub directory: PathBuf,
    /// Whether the library was there already, byte for byte.
    pub was_there: bool,
}

/// The command: installs this release and says so.
pub fn command(args: &InstallArgs) -> Result<(), InstallError> {
    let installed = install(args, env!("CARGO_PKG_VERSION"))?;
    let how = if installed.was_there { "was there already" } else { "installed" };
    println!("{}: {how}; new pods get it", installed.directory.join(LIBRARY).display());
    Ok(())
}

/// Installs the library as `release` and makes it the one that new pods get.
pub fn install(args: &InstallArgs, release: &str) -> Result<Installed, InstallError> {
    let library =
        fs::read(&args.from).map_err(|source| InstallError::Read { path: args.from.clone(), source })?;
    // The magic number and the class of a 64-bit file.
    if !library.starts_with(b"\x7fELF\x02") {
        return Err(InstallError::NoLibrary(args.from.clone()));
    }
    let directory = args.to.join(release);
    make_directory(&args.to)?;
    make_directory(&directory)?;
    // Two of us at a time would take each other's unfinished files for leftovers. Held until the end.
    let lock = File::open(&args.to).map_err(|source| system("open", &args.to, source))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| system("lock", &args.to, errno.into()))?;
    remove_unfinished(&args.to)?;
    remove_unfinished(&directory)?;

    let path = directory.join(LIBRARY);
    let was_there = match fs::read(&path) {
        Ok(there) if there == library => true,
        Ok(_) => return Err(InstallError::Differs { path, directory }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(&path, &library)?;
            false
        }
        Err(source) => return Err(system("read", &path, source)),
    };
    let preload = format!("{}\n", args.in_pods.join(LIBRARY).display());
    let path = directory.join(PRELOAD);
    if fs::read(&path).ok().as_deref() != Some(preload.as_bytes()) {
        write(&path, preload.as_bytes())?;
    }
    for (inside, target) in LIB {
        make_directory(&directory.join(inside))?;
        remove_unfinished(&directory.join(inside))?;
        link(&directory.join(inside).join(LIBRARY), Path::new(target))?;
    }
    sync(&directory)?;
    // Last: whoever follows it finds everything.
    link(&args.to.join(CURRENT), Path::new(release))?;
    Ok(Installed { directory, was_there })
}

/// Makes a directory, and those above it, that everybody can read, whatever the umask is.
fn make_directory(path: &Path) -> Result<(), InstallError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|source| failed("make the directory", path, source))
}

/// Removes what an earlier installation left when it was killed.
fn remove_unfinished(directory: &Path) -> Result<(), InstallError> {
    let entries = fs::read_dir(directory).map_err(|source| system("read", directory, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| system("read", directory, source))?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            fs::remove_file(entry.path()).map_err(|source| system("remove", &entry.path(), source))?;
        }
    }
    Ok(())
}

/// The name of `path` while it is not finished.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{name}"))
}

/// Puts a new file in its place, whole and on the disk.
fn write(path: &Path, bytes: &[u8]) -> Result<(), InstallError> {
    let fresh = unfinished(path);
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh).and_then(|mut file| {
            file.write_all(bytes)?;
            // Whatever the umask is: every pod reads it.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.sync_all()
        });
    let written = written.and_then(|()| fs::rename(&fresh, path));
    if let Err(source) = written {
        let _ = fs::remove_file(&fresh);
        return Err(failed("write", path, source));
    }
    sync(path.parent().unwrap_or(Path::new("/")))
}

/// Makes `path` a symbolic link to `target`, from one moment to the next.
fn link(path: &Path, target: &Path) -> Result<(), InstallError> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_symlink() => return Err(InstallError::NoLink(path.to_owned())),
        Ok(_) if fs::read_link(path).is_ok_and(|there| there == target) => return Ok(()),
        _ => {}
    }
    let fresh = unfinished(path);
    symlink(target, &fresh)
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(|source| failed("make the link", path, source))?;
    sync(path.parent().unwrap_or(Path::new("/")))
}

/// Brings the entries of a directory to the disk.
fn sync(directory: &Path) -> Result<(), InstallError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| failed("sync", directory, source))
}

fn failed(act: &'static str, path: &Path, source: io::Error) -> InstallError {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&source.kind());
    if full { InstallError::Full { path: path.to_owned(), source } } else { system(act, path, source) }
}

fn system(act: &'static str, path: &Path, source: io::Error) -> InstallError {
    InstallError::System { act, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
