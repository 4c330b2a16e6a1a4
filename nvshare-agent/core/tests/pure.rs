//! The core is pure, so that the model of the grant protocol and the world in virtual time run exactly what the agent runs:
//! it depends on nothing that waits, asks or talks, and of the standard library it uses what is plain. Ledger and policy use
//! each other and plain data, and nothing else of the core either. Read from the text: an arrow out of them fails with both
//! names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What ledger and policy may use besides each other: values, with the reason why they are no more than that.
const PLAIN: [(&str, &str); 7] = [
    ("decision", "what the policy decides"),
    ("moment", "time as a value"),
    ("observation", "what the uprobes saw, as values"),
    ("order", "what was ordered for one client"),
    ("process", "a pid and a start"),
    ("reading", "what NVML said of a device"),
    ("settings", "what the operator chose"),
];

/// What they may use of other crates.
const CRATES: [&str; 2] = ["std", "nvshare_common"];

/// What the core depends on.
const DEPENDENCIES: [&str; 4] = ["nvshare-common", "serde", "thiserror", "tracing"];

/// What no pure crate brings along, however far away.
const REACHES_OUT: [&str; 8] =
    ["aya", "axum", "clap", "kube", "nvml-wrapper", "rustix", "tokio", "tracing-subscriber"];

/// What reaches out of a pure function, although it stands in something that may be used.
const IMPURE: [&str; 9] = [
    "Instant",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
];

/// The folders that are pure.
const PURE: [&str; 2] = ["ledger", "policy"];

/// The Rust files below, with the path of the module that each one is.
fn modules(directory: &Path, module: &[String], found: &mut Vec<(Vec<String>, PathBuf)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let below = || module.iter().cloned().chain([stem.clone()]).collect::<Vec<_>>();
        if path.is_dir() {
            modules(&path, &below(), found);
        } else if stem == "mod" {
            found.push((module.to_vec(), path));
        } else {
            found.push((below(), path));
        }
    }
}

/// The code without its comments: what these name, nobody uses.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The names that follow a path's beginning in the code: one, or all of a list in braces.
fn after<'a>(code: &'a str, beginning: &str) -> Vec<&'a str> {
    let name =
        |text: &'a str| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
    let starts = code
        .match_indices(beginning)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
    let rest = starts.map(|(at, _)| &code[at + beginning.len()..]);
    rest.flat_map(|rest| match rest.strip_prefix('{') {
        Some(list) => {
            list.split('}').next().unwrap_or_default().split(',').map(str::trim).map(name).collect()
        }
        None => vec![name(rest)],
    })
    .filter(|name| !name.is_empty())
    .collect()
}

/// What the code of a module uses and may not.
fn arrows_out(module: &[String], code: &str) -> Vec<String> {
    let mut out = Vec::new();
    let plain = |name: &str| PURE.contains(&name) || PLAIN.iter().any(|(plain, _)| *plain == name);
    out.extend(after(code, "crate::").into_iter().filter(|name| !plain(name)).map(str::to_owned));
    // As many steps up as lead out of a folder; one more in the tests at the end of a file.
    let up = "super::".repeat(module.len());
    out.extend(
        after(code, &up).into_iter().filter(|name| !plain(name) && *name != "super").map(str::to_owned),
    );
    let known = |name: &str| CRATES.contains(&name) || ["crate", "self", "super"].contains(&name);
    let used = code.lines().filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub(super) ").or(line.strip_prefix("pub(crate) ")).unwrap_or(line);
        let line = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("use ")?;
        // A module of its own, or something of one that is in scope, has no path in front.
        line.split_once("::").map(|(first, _)| first)
    });
    let own = |name: &str| code.contains(&format!("mod {name};")) || name.starts_with(char::is_uppercase);
    out.extend(used.filter(|name| !known(name) && !own(name)).map(str::to_owned));
    out.extend(IMPURE.iter().filter(|name| code.contains(*name)).map(|name| (*name).to_owned()));
    out
}

#[test]
fn the_core_depends_on_values_only() {
    let tree = |more: &[&str]| -> BTreeSet<String> {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--package", "nvshare-agent-core", "--edges", "normal"])
            .args(["--prefix", "none", "--format", "{p}"])
            .args(more)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    let mut direct = tree(&["--depth", "1"]);
    direct.remove("nvshare-agent-core");
    assert_eq!(direct, DEPENDENCIES.map(str::to_owned).into());
    let all = tree(&[]);
    assert!(all.len() > DEPENDENCIES.len(), "{all:?}");
    let found: Vec<&str> = REACHES_OUT.into_iter().filter(|name| all.contains(*name)).collect();
    assert!(found.is_empty(), "the core brings along {found:?}");
}

#[test]
fn nothing_in_the_core_reaches_out_of_the_process() {
    let mut all = Vec::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut all);
    assert!(all.len() > 30, "these are all: {all:?}");
    for (module, path) in all {
        let code = code(&fs::read_to_string(path).unwrap());
        let found: Vec<&str> = IMPURE.into_iter().filter(|name| code.contains(name)).collect();
        assert!(found.is_empty(), "{} uses {found:?}", module.join("::"));
    }
}

#[test]
fn ledger_and_policy_use_each_other_and_plain_data_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    for folder in PURE {
        modules(&source.join(folder), &[folder.to_owned()], &mut all);
    }
    assert!(all.len() > 15, "these are all: {all:?}");
    let arrows = all.iter().flat_map(|(module, path)| {
        let code = code(&fs::read_to_string(path).unwrap());
        let from = module.join("::");
        arrows_out(module, &code).into_iter().map(move |to| format!("{from} uses {to}")).collect::<Vec<_>>()
    });
    let arrows: Vec<String> = arrows.collect();
    assert!(arrows.is_empty(), "out of what is pure:\n{}", arrows.join("\n"));
}

#[test]
fn an_arrow_out_is_found_however_it_is_written() {
    let module = ["ledger".to_owned(), "client".to_owned()];
    let found = |code_of: &str| arrows_out(&module, &code(code_of));
    for (text, name) in [
        ("use crate::keep::Remembered;", "keep"),
        ("use crate::{moment::Moment, control};", "control"),
        ("let page = crate::control::page();", "control"),
        ("use super::super::conductor::core;", "conductor"),
        ("    use tracing::info;", "tracing"),
        ("pub use rustix::fs::stat;", "rustix"),
        ("let now = Instant::now();", "Instant"),
    ] {
        assert_eq!(found(text), [name], "{text}");
    }
    for text in [
        "use crate::moment::Moment; // not crate::keep",
        "//! See [`crate::keep`].",
        "use super::recency::Recency;",
        "use super::super::policy::Decision;",
        "use std::time::Duration;",
        "use nvshare_common::bytes::Bytes;",
        "use Observation as O;",
    ] {
        assert_eq!(found(text), Vec::<String>::new(), "{text}");
    }
}
