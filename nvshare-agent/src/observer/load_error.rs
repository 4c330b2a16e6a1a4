//! Why the eBPF programs are not in the kernel: what it answered, in words that help.

use std::io;
use std::path::{Path, PathBuf};

use aya::EbpfError;
use aya::programs::ProgramError;

/// Why the programs are not in the kernel, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no object.
    #[error(
        "cannot read the eBPF programs {0}: {1} (build them by `cargo xtask build`, or name the file with --ebpf-object)"
    )]
    Read(PathBuf, io::Error),
    /// The kernel does not let us.
    #[error(
        "the kernel does not let the agent load eBPF programs ({0}): run it as root, with CAP_BPF and CAP_PERFMON \
         (before Linux 5.8: CAP_SYS_ADMIN), in a container privileged"
    )]
    Permission(String),
    /// The kernel cannot.
    #[error(
        "this kernel has no eBPF (bpf(2) is not there): Linux 5.15 with CONFIG_BPF_SYSCALL and CONFIG_UPROBES is needed"
    )]
    NoBpf,
    /// The object is not ours, or the kernel refused a part of it.
    #[error("cannot load the eBPF programs {0}: {1} (of another release than the agent? Linux before 5.15?)")]
    Object(PathBuf, String),
    /// The kernel refused a program.
    #[error("the kernel refused the eBPF program `{name}`: {error}{}", last_lines(.log))]
    Program {
        /// Which.
        name: &'static str,
        /// The kernel's error.
        error: String,
        /// What the verifier said.
        log: String,
    },
}

pub(super) fn program_error(name: &'static str, error: &ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            refused(name, io_error, verifier_log.to_string())
        }
        other => LoadError::Program { name, error: chain(other), log: String::new() },
    }
}

/// Before the verifier looks at a program the kernel looks at who loads it.
pub(super) fn refused(name: &'static str, error: &io::Error, log: String) -> LoadError {
    if log.is_empty() && error.kind() == io::ErrorKind::PermissionDenied {
        return LoadError::Permission(error.to_string());
    }
    LoadError::Program { name, error: error.to_string(), log }
}

/// aya's error as one of ours: what the kernel answered lies at the end of its chain.
pub(super) fn load_error(object: &Path, error: &EbpfError) -> LoadError {
    let mut cause: &dyn std::error::Error = error;
    loop {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            match io.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => return LoadError::Permission(io.to_string()),
                Some(libc::ENOSYS) => return LoadError::NoBpf,
                _ => {}
            }
        }
        match cause.source() {
            Some(next) => cause = next,
            None => return LoadError::Object(object.to_owned(), chain(error)),
        }
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}

/// The end of what the verifier said: there it says why.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(12)..].iter().flat_map(|line| ["\n  ", line]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_without_a_reason_of_the_verifier_is_one_of_permission() {
        let refused = |errno, log: &str| {
            let verifier_log = aya_obj::VerifierLog::new(log.to_owned());
            program_error(
                "entry",
                &ProgramError::LoadError { io_error: io::Error::from_raw_os_error(errno), verifier_log },
            )
        };
        assert!(refused(libc::EPERM, "").to_string().contains("CAP_BPF"));
        assert!(matches!(refused(libc::EACCES, "invalid access"), LoadError::Program { .. }));
        assert!(matches!(refused(libc::EINVAL, ""), LoadError::Program { .. }));
    }
}
