//! A command that runs as a client program of a node.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;

/// A [`Command`] with the environment of a node's clients. It dies with the thread that spawned it.
#[derive(Debug)]
pub struct ClientCommand {
    pub(crate) command: Command,
    pub(crate) shim: PathBuf,
}

impl ClientCommand {
    /// Preloads the shim.
    #[must_use]
    pub fn with_shim(mut self) -> ClientCommand {
        self.command.env("LD_PRELOAD", &self.shim);
        self
    }
}

impl Deref for ClientCommand {
    type Target = Command;
    fn deref(&self) -> &Command {
        &self.command
    }
}

impl DerefMut for ClientCommand {
    fn deref_mut(&mut self) -> &mut Command {
        &mut self.command
    }
}
