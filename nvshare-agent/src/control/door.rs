//! Clients whose directory was removed, or who left it behind with their root. A container that has mounted the directory of our socket keeps it when it is
//! removed and made anew on the node: its clients look for an agent where none can ever be. Their shims then open a back
//! door (see the shim's `link/door.rs`): the number of a socket in their counter page. We see every process, take that
//! socket and knock.

use std::collections::BTreeMap;
use std::fs;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nvshare_agent_core::process::Process;
use nvshare_common::counters::{Counters, PAGE_BYTES};
use nvshare_common::protocol;
use rustix::io::Errno;
use rustix::net::sockopt::socket_cookie;
use rustix::net::{SendFlags, send};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::home::Home;
use super::page::peer_pid;
use crate::proc;

/// What is said of a client that cannot be reached.
const REMEDY: &str = "restart its pod; only remove the directory of the clients' socket when no client runs";

/// Processes that use the driver and the shim, with the directory in which they look for an agent, which is ours.
pub(crate) fn lookers(home: &Home) -> Vec<(u32, PathBuf)> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let users = pids.filter(|pid| uses_driver_and_shim(*pid));
    users.filter_map(|pid| Some((pid, directory(pid, home)?))).collect()
}

fn uses_driver_and_shim(pid: u32) -> bool {
    let Ok(maps) = fs::read(format!("/proc/{pid}/maps")) else { return false };
    let has = |name: &[u8]| maps.windows(name.len()).any(|piece| piece == name);
    has(b"/libnvshare.so") && has(b"/libcuda.so")
}

/// The directory as we can reach it; `None`: it is another agent's.
fn directory(pid: u32, home: &Home) -> Option<PathBuf> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let named = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"NVSHARE_SOCKET="))
        .map_or(protocol::SOCKET.into(), |value| String::from_utf8_lossy(value).into_owned());
    let inside = Path::new(&named).parent().filter(|inside| home.is_looked_for_by(pid, inside))?;
    Some(PathBuf::from(format!("/proc/{pid}/root{}", inside.display())))
}

/// Whether the directory has no name any more.
pub(crate) fn is_removed(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|found| found.nlink() == 0)
}

/// Clients that were left behind, each with whether it was said that it cannot be reached.
#[derive(Debug, Default)]
pub(super) struct Doors {
    left: BTreeMap<u32, Left>,
}

#[derive(Debug)]
struct Left {
    process: Process,
    said: bool,
    /// The door at which it was knocked last, by its cookie. Once is enough for each: if it is not heard, or nothing comes of
    /// it, the client opens another.
    knocked: Option<u64>,
}

impl Doors {
    /// Looks for them among all processes: not often.
    pub(super) fn look(&mut self, home: &Home) {
        for (pid, directory) in lookers(home) {
            let offers = || door(pid).is_ok_and(|door| door.is_some());
            if !(is_removed(&directory) || !directory.exists() && offers()) {
                continue;
            }
            let Some(process) = proc::process(pid) else { continue };
            if self.left.get(&pid).is_none_or(|left| left.process != process) {
                tracing::warn!(
                    pid,
                    directory = %directory.display(),
                    "a client looks for the agent in a directory that is gone: it is reached through its back door"
                );
                self.left.insert(pid, Left { process, said: false, knocked: None });
            }
        }
    }

    /// Knocks at every door that is open; the sockets are sessions from now on.
    pub(super) fn knock(&mut self) -> Vec<OwnedFd> {
        self.left.retain(|pid, left| proc::process(*pid) == Some(left.process));
        let mut sockets = Vec::new();
        for (pid, left) in &mut self.left {
            match through(*pid, left.knocked) {
                Ok(Some((socket, cookie))) => {
                    left.knocked = Some(cookie);
                    tracing::info!(pid, "reached a client whose directory was removed");
                    left.said = false;
                    sockets.push(socket);
                }
                Err(error) if !left.said => {
                    left.said = true;
                    tracing::warn!(pid, %error, remedy = REMEDY, "cannot reach a client whose directory was removed");
                }
                Ok(None) | Err(_) => {}
            }
        }
        sockets
    }
}

/// Takes the socket that the process offers, if it offers one that is not `known`, and knocks. With its cookie.
fn through(pid: u32, known: Option<u64>) -> std::io::Result<Option<(OwnedFd, u64)>> {
    let Some((number, cookie)) = door(pid)?.filter(|(_, cookie)| Some(*cookie) != known) else {
        return Ok(None);
    };
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let process = pidfd_open(id, PidfdFlags::empty())?;
    let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
        // It was closed meanwhile.
        Err(Errno::BADF) => return Ok(None),
        other => other?,
    };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    // A child of a client has its page and its descriptors, and is no client.
    if peer_pid(socket.as_fd()).ok() != Some(id.as_raw_nonzero().get()) {
        return Ok(None);
    }
    // The door may have been closed meanwhile, and its number be another socket's: of the application's own, perhaps.
    if socket_cookie(&socket).ok() != Some(cookie) {
        return Ok(None);
    }
    // Whatever a process may offer, only a socket can be sent to; who is at its other end is asked as of any other.
    match send(&socket, protocol::KNOCK, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(_) => Ok(Some((socket, cookie))),
        Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The number of the descriptor that the process offers, by its counter page, and the cookie of what it means.
fn door(pid: u32) -> std::io::Result<Option<(i32, u64)>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let named = fs::read_link(&path).unwrap_or_default();
        if !named.as_os_str().as_encoded_bytes().starts_with(b"/memfd:nvshare-counters") {
            continue;
        }
        let page = fs::File::open(&path)?;
        if page.metadata()?.len() != PAGE_BYTES as u64 {
            continue;
        }
        let word = |offset: usize| -> std::io::Result<u64> {
            let mut bytes = [0; 8];
            page.read_exact_at(&mut bytes, offset as u64)?;
            Ok(u64::from_ne_bytes(bytes))
        };
        let number = word(offset_of!(Counters, door))?.checked_sub(1).and_then(|it| i32::try_from(it).ok());
        return Ok(number.zip(Some(word(offset_of!(Counters, door_cookie))?)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_removed_is_told_from_one_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let open = fs::File::open(directory.path()).unwrap();
        let through = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)));
        assert!(!is_removed(&through));
        fs::remove_dir(directory.path()).unwrap();
        assert!(is_removed(&through));
        assert!(!is_removed(directory.path()));
    }

    #[test]
    fn this_process_offers_nothing() {
        assert_eq!(door(std::process::id()).unwrap(), None);
    }
}
