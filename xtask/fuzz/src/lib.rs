//! Everything that reads bytes of others, as functions that take any bytes: none may panic, hang or grow without bound
//! (invariant A4), and what is read back must be what was written.
//!
//! `cargo xtask fuzz` runs a fuzzer on them; the test `replay` throws the corpus (`corpus/TARGET/`, what the fuzzer once
//! found worth keeping) and some thousand changes of it at each, with any compiler.

mod code;
mod conversation;
mod messages;
mod nodes;
mod pods;
mod words;

use std::path::PathBuf;

/// One door that bytes of others come in at.
pub struct Target {
    /// Its name: of its directory in the corpus too.
    pub name: &'static str,
    /// Reads the bytes; panics where something is wrong with us.
    pub knock: fn(&[u8]),
    /// Inputs that make sense, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "messages", knock: messages::messages, seeds: messages::seeds },
    Target { name: "page", knock: messages::page, seeds: messages::pages },
    Target { name: "records", knock: messages::records, seeds: messages::record_seeds },
    Target { name: "library", knock: code::library, seeds: code::libraries },
    Target { name: "instructions", knock: code::instructions, seeds: code::instruction_seeds },
    Target { name: "ptx", knock: code::ptx, seeds: code::texts },
    Target { name: "proc", knock: nodes::proc, seeds: nodes::proc_seeds },
    Target { name: "pods", knock: pods::pods, seeds: pods::pod_seeds },
    Target { name: "kubelet", knock: pods::kubelet, seeds: pods::kubelet_seeds },
    Target { name: "admin", knock: words::admin, seeds: words::admin_seeds },
    Target { name: "words", knock: words::words, seeds: words::word_seeds },
    Target { name: "config", knock: words::config, seeds: words::config_seeds },
    Target { name: "conversation", knock: conversation::conversation, seeds: conversation::seeds },
];

/// The target of this name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// All names, for a message.
pub fn names() -> String {
    TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ")
}

/// Where the corpus of a target lies.
pub fn corpus(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}
