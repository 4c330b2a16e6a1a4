//! `cargo xtask test`: what the tests need is built first, so that none of them tests yesterday's shim. All tests, those of
//! the packages that are named, or those that are quick.

mod failures;

use std::io::{BufRead, BufReader, Write, stdout};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use nvshare_testbed::Artifacts;

use crate::build;
use crate::command::cargo;
use failures::Failures;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only the tests that need no eBPF programs and start no node, for the time while one writes.
    #[arg(long)]
    quick: bool,
    /// Passed on to `cargo test`, of the whole workspace unless packages are named: `-p PACKAGE`, `--test FILE`, part of a
    /// test's name, or `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    let named = named(&options.arguments);
    let (artifacts, chosen) = if options.quick {
        (build::only(&["nvshare-sim"])?, quick(&named))
    } else if named.is_empty() {
        (everything()?, vec!["--workspace"])
    } else {
        (needed(&named)?, Vec::new())
    };
    test(
        cargo()
            .args(["test", "--no-fail-fast"])
            .args(chosen)
            .args(&options.arguments)
            .env("NVSHARE_ARTIFACTS", artifacts.directory()),
    )
}

/// Runs `cargo test`; what failed is the last that it prints.
fn test(command: &mut Command) -> Result<()> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {command:?}"))?;
    let mut output = BufReader::new(child.stdout.take().expect("a pipe was asked for"));
    let (mut failures, mut line) = (Failures::default(), Vec::new());
    while output.read_until(b'\n', &mut line)? > 0 {
        stdout().write_all(&line)?;
        failures.read(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} failed ({status})\n{failures}");
    }
    Ok(())
}

fn everything() -> Result<Artifacts> {
    build::run(&build::Options { release: false })
}

/// The packages that `arguments` name, as cargo reads them.
fn named(arguments: &[String]) -> Vec<&str> {
    let mut named = Vec::new();
    let mut rest = arguments.iter().map(String::as_str).take_while(|argument| *argument != "--");
    while let Some(argument) = rest.next() {
        match argument {
            "-p" | "--package" => named.extend(rest.next()),
            _ => {
                let value = argument.strip_prefix("--package=").or_else(|| argument.strip_prefix("-p"));
                named.extend(value.map(|value| value.trim_start_matches('=')));
            }
        }
    }
    named
}

/// Builds what the tests of these packages start or load.
fn needed(packages: &[&str]) -> Result<Artifacts> {
    let mut all = Vec::new();
    for package in packages {
        match artifacts_of(package) {
            Some(some) => all.extend(some),
            None => return everything(),
        }
    }
    build::only(&all)
}

/// What the tests of `package` start or load; none where that may be anything.
fn artifacts_of(package: &str) -> Option<&'static [&'static str]> {
    Some(match package {
        "nvshare-common"
        | "nvshare-agent-core"
        | "nvshare-agent-world"
        | "nvshare-sim-card"
        | "nvshare-sim-nvml"
        | "nvshare-floors"
        | "nvshare-workload"
        | "nvshare-fuzz"
        | "xtask" => &[],
        "nvshare-sim" => &["nvshare-sim"],
        "nvshare-shim" => &["nvshare-sim", "nvshare-sim-nvml", "nvshare-shim"],
        _ => return None,
    })
}

/// The packages and targets of `--quick`. Of the simulator all: its tests are programs of their own over its C interface.
const QUICK: [(&str, &[&str]); 7] = [
    ("nvshare-common", &["agreed"]),
    ("nvshare-floors", &[]),
    ("nvshare-agent", &[]),
    (
        "nvshare-agent-core",
        &[
            "admission",
            "books",
            "cards",
            "crowds",
            "floors",
            "grants",
            "growth",
            "hostile",
            "older",
            "orders",
            "paging",
            "promises",
            "pure",
            "turns",
            "unmanaged",
        ],
    ),
    ("nvshare-shim", &["gate_model", "asks_model", "floors"]),
    (
        "nvshare-sim",
        &[
            "arrays",
            "cards",
            "contexts",
            "copies",
            "deferred",
            "execution",
            "exports",
            "failures",
            "floors",
            "graph_memory",
            "graphs",
            "ipc",
            "jam",
            "kernels",
            "managed",
            "memory",
            "pointers",
            "pools",
            "reuse",
            "shareable",
            "vmm",
        ],
    ),
    ("nvshare-sim-card", &["processes"]),
];

/// The unit tests and some others, of all these packages or of those that are named, as cargo is told.
fn quick(named: &[&str]) -> Vec<&'static str> {
    let mut arguments = vec!["--lib"];
    for (package, tests) in QUICK.iter().filter(|(package, _)| named.is_empty() || named.contains(package)) {
        arguments.extend(["--package", package]);
        arguments.extend(tests.iter().flat_map(|test| ["--test", *test]));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::command::root;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn packages_are_found_as_cargo_finds_them() {
        for line in ["-p a --package b", "-pa --package=b", "-p=a name --package b", "-p a -p b -- -p c"] {
            assert_eq!(named(&words(line)), ["a", "b"], "{line}");
        }
        assert!(named(&words("--test turns a_lease -- -p")).is_empty());
    }

    /// The simulator and the agent's core.
    #[test]
    fn whatever_is_quick_is_among_the_quick_tests() {
        for (package, tests) in QUICK {
            let folder = match package {
                "nvshare-agent-core" => "nvshare-agent/core",
                "nvshare-sim-card" => "nvshare-sim/card",
                other => other,
            };
            let folder = root().join(folder).join("tests");
            for test in tests {
                let files = [folder.join(test).with_extension("rs"), folder.join(test).join("main.rs")];
                assert!(files.iter().any(|file| file.is_file()), "{package} has no test {test}");
            }
            for file in fs::read_dir(&folder).into_iter().flatten().map(|file| file.unwrap().path()) {
                if file.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let name = file.file_stem().unwrap().to_str().unwrap();
                let pure = ["nvshare-agent-core", "nvshare-sim"].contains(&package);
                assert!(!pure || tests.contains(&name), "{} is not among the quick tests", file.display());
            }
        }
    }
}
