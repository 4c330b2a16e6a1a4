//! The capabilities of `deploy/overlays/unprivileged`, tried for real: with them the agent observes what a root process
//! and one with a private library do, and knows whom a new agent waits for; without any one of them it does not.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nvshare_testbed::{Agent, Artifacts, Client, Node, is_root, signal, wait_for};
use serde_json::Value;
use tempfile::TempDir;

const MANIFEST: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays/unprivileged/unprivileged.yaml");
const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/systemd/nvshare-agent.service");
/// Somebody who is not root.
const OWNER: u32 = 1000;

/// What the manifest adds.
fn capabilities() -> Vec<String> {
    let manifest = fs::read_to_string(MANIFEST).expect("the overlay");
    let added = manifest.lines().skip_while(|line| line.trim() != "add:").skip(1).map(str::trim);
    let added = added.take_while(|line| line.starts_with("- ") || line.starts_with('#'));
    added.filter_map(|line| line.strip_prefix("- ")).map(str::to_lowercase).collect()
}

/// Why it cannot be tried here.
fn impossible() -> Option<&'static str> {
    if !is_root() {
        return Some("only root can give capabilities away");
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        return Some("no setpriv (Debian: apt-get install util-linux)");
    }
    if Artifacts::find().ebpf().is_none() {
        return Some("the eBPF programs were not built");
    }
    None
}

/// The artifacts, but for the agent: a script that starts it with no other capabilities than these, as a container
/// without `privileged` does.
fn artifacts_with(capabilities: &[String]) -> (TempDir, Artifacts) {
    let real = Artifacts::find();
    let directory = TempDir::with_prefix("nvshare-capabilities-").expect("a directory");
    for path in [real.libcuda(), real.nvml(), real.shim(), real.workload(), real.ebpf().expect("built")] {
        symlink(&path, directory.path().join(path.file_name().expect("a name"))).expect("a link");
    }
    let set = [&["-all".to_owned()], capabilities].concat().join(",+");
    let script = format!(
        "#!/bin/sh\nexec setpriv --no-new-privs --bounding-set={set} --inh-caps={set} {} \"$@\"\n",
        real.agent().display()
    );
    let path = directory.path().join("nvshare-agent");
    fs::write(&path, script).expect("the script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its permissions");
    let artifacts = Artifacts::at(directory.path());
    (directory, artifacts)
}

/// The node's driver library in a directory that only its owner, and who may read everything, can look into.
fn private_library(node: &Node) -> PathBuf {
    let directory = node.path().join("private");
    fs::create_dir(&directory).expect("a directory");
    fs::copy(node.libcuda(), directory.join("libcuda.so.1")).expect("a copy of the library");
    symlink("libcuda.so.1", directory.join("libcuda.so")).expect("a link to it");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("its permissions");
    chown(&directory, Some(OWNER), Some(OWNER)).expect("its owner");
    directory
}

/// What an agent found out about two clients. All is well when everything is `true`.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// The uprobes counted the calls of the client with the node's library.
    ordinary: bool,
    /// ... and those of the one with the private library.
    private: bool,
    /// A successor waits for both.
    awaited: bool,
}

const EVERYTHING: Found = Found { ordinary: true, private: true, awaited: true };

/// What is found within this time, if not all of it is before: on a busy machine it takes a while until a library is read.
fn found_with(capabilities: &[String], patience: Duration) -> Found {
    let (_directory, artifacts) = artifacts_with(capabilities);
    let node = Node::builder()
        .artifacts(artifacts)
        .env("NVSHARE_SIM_CARD_BYTES", "128M")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build();
    let private = private_library(&node);
    let mut agent = node.agent(["--reserve", "2M"]);
    // Root with every capability, which is more than the agent has.
    let workload = || node.workload("--bytes 16M --buffers 2 --seconds 120").with_shim();
    let ordinary = Client::start(&mut workload());
    let hidden = Client::start(workload().env("LD_LIBRARY_PATH", private));
    let begun = Instant::now();
    let both = wait_for("both clients have made calls", Duration::from_mins(2), || {
        let calls = [&ordinary, &hidden].map(|client| totals(&agent, client.id()));
        let [Some((a, seen_a)), Some((b, seen_b))] = calls else { return None };
        let seen = [seen_a > 0, seen_b > 0];
        let enough = a > 300 && b > 300 && begun.elapsed() > patience;
        (seen == [true, true] || enough).then_some(seen)
    });
    for client in [&ordinary, &hidden] {
        signal(client.id(), libc::SIGSTOP).unwrap();
    }
    agent.kill();
    let successor = node.start_agent(["--reserve", "2M"]);
    let state = wait_for("the new agent answers", Duration::from_secs(30), || successor.try_state().ok());
    let awaited = state["awaited"].as_array().map_or(0, Vec::len);
    for client in [&ordinary, &hidden] {
        signal(client.id(), libc::SIGCONT).unwrap();
    }
    Found { ordinary: both[0], private: both[1], awaited: awaited == 2 }
}

/// How many calls a client made by its own count, and how many of these the uprobes saw.
fn totals(agent: &Agent, pid: u32) -> Option<(u64, u64)> {
    let state = agent.try_state().ok()?;
    let client = state["clients"].as_array()?.iter().find(|client| client["process"]["pid"] == pid)?.clone();
    let sum = |name: &str| -> Option<u64> {
        let calls = client["totals"][name].as_object()?;
        Some(calls.values().filter_map(Value::as_u64).sum())
    };
    Some((sum("engine_calls")? + sum("application_calls")?, sum("engine_seen")? + sum("application_seen")?))
}

#[test]
fn the_systemd_unit_keeps_the_same_capabilities() {
    let unit = fs::read_to_string(UNIT).expect("the unit");
    let kept =
        unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let kept: Vec<String> =
        kept.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
    assert_eq!(kept, capabilities());
}

#[test]
fn an_agent_that_may_not_attach_says_which_capability_is_missing() {
    if let Some(why) = impossible() {
        eprintln!("SKIPPED: an agent without CAP_PERFMON is not tried: {why}");
        return;
    }
    let (_directory, artifacts) = artifacts_with(&["bpf".to_owned()]);
    let node = Node::builder().artifacts(artifacts).build();
    let agent = node.agent([""; 0]);
    let why = wait_for("the agent says what is missing", Duration::from_secs(30), || {
        let (_, answer) = agent.get("/readyz").ok()?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        let missing = answer["missing"].as_array()?.iter().find(|missing| missing["part"] == "uprobes")?;
        missing["why"].as_str().map(str::to_owned)
    });
    assert!(why.contains("CAP_PERFMON"), "{why}");
}

#[test]
fn the_capabilities_of_the_unprivileged_overlay_suffice_and_none_is_too_much() {
    if let Some(why) = impossible() {
        eprintln!("SKIPPED: the unprivileged agent is not tried: {why}");
        return;
    }
    let capabilities = capabilities();
    assert!(!capabilities.is_empty(), "{} adds none", Path::new(MANIFEST).display());
    assert_eq!(found_with(&capabilities, Duration::from_secs(45)), EVERYTHING, "with {capabilities:?}");
    for without in &capabilities {
        let rest: Vec<String> = capabilities.iter().filter(|name| *name != without).cloned().collect();
        let found = found_with(&rest, Duration::from_secs(2));
        eprintln!("without {without}: {found:?}");
        assert_ne!(found, EVERYTHING, "{without} is not needed");
    }
}
