//! Who is at the other end of a socket, and what only the kernel knows: random bytes.

#![expect(unsafe_code, reason = "the kernel is asked")]

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// The process and the user that connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// 0: in a namespace that is not seen from here.
    pub(super) process: i32,
    pub(super) user: u32,
}

impl Peer {
    /// (Not by `rustix`: there a process that is not seen from here makes a number that must not be 0.)
    pub(super) fn of(socket: BorrowedFd<'_>) -> rustix::io::Result<Peer> {
        let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: `found` is where the answer goes, which is as long as is said.
        let asked = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut length,
            )
        };
        if asked != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
        }
        Ok(Peer { process: found.pid, user: found.uid })
    }

    /// Whether its process has ended, for certain: one that nobody waited for has not, nor one that is not seen from here.
    pub(super) fn has_ended(self) -> bool {
        // SAFETY: it signals nothing.
        let asked = self.process > 0 && unsafe { libc::kill(self.process, 0) } != 0;
        asked && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
    }
}

pub(super) fn random() -> Option<[u8; 16]> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the buffer has that many bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    (got == 16).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_process_has_ended_when_it_is_gone_for_certain() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = Peer::of(here.as_fd()).unwrap();
        assert_eq!(peer.process.unsigned_abs(), std::process::id());
        assert!(!peer.has_ended());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let of_child = Peer { process: child.id() as i32, ..peer };
        child.wait().unwrap();
        assert!(of_child.has_ended());
        assert!(!Peer { process: 0, ..peer }.has_ended(), "not seen from here");
        // That of the kernel's first process, which is another user's: it must not be signalled, and is there.
        assert!(!Peer { process: 1, ..peer }.has_ended());
    }
}
