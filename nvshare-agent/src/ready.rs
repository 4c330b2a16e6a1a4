//! Descriptors, given to the runtime to wait for.

#![expect(unsafe_code, reason = "an owned descriptor stays open as long as the runtime waits for it")]

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime wait for `interest` in a descriptor.
pub(crate) fn wait_for(descriptor: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open file until it is dropped, and the runtime owns it until then.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(Into::into)
}
