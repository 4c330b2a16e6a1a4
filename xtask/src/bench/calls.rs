//! What single driver calls cost, on the machine's GPU or on the simulator: bare, under the library, and while the agent's
//! probes sit on them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nvshare_testbed::{Artifacts, ClientCommand, Node};
use tempfile::TempDir;

use super::figure::{Figure, Judged};
use crate::agent::has_gpu;
use crate::command::{root, run as run_command};

/// Median and 99th percentile of each call, in nanoseconds.
type Costs = BTreeMap<String, (f64, f64)>;

/// The rounds of which the best is taken: whatever else the machine does can only make calls slower.
const ROUNDS: usize = 3;

/// The program that measures.
fn program(artifacts: &Artifacts, into: &TempDir) -> Result<PathBuf> {
    let path = into.path().join("calls");
    let mut command = Command::new("cc");
    command.args(["-O2", "-o"]).arg(&path).arg("-I").arg(root().join("xtask/testbed/tests/cases/programs"));
    command.arg(root().join("xtask/src/bench/calls.c")).arg("-L").arg(artifacts.directory());
    run_command(command.args(["-Wl,--no-as-needed", "-lcuda", "-lpthread", "-ldl"]))?;
    Ok(path)
}

fn node(artifacts: &Artifacts) -> Node {
    let builder = Node::builder().artifacts(artifacts.clone());
    if has_gpu() {
        return builder.real().build();
    }
    builder
        .env("NVSHARE_SIM_CARD_BYTES", "1G")
        .env("NVSHARE_SIM_CONTEXT_BYTES", "8M")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build()
}

fn costs(mut command: ClientCommand) -> Result<Costs> {
    let output = command.output().context("the program that measures calls")?;
    ensure!(output.status.success(), "calls: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |line: &str| -> Option<(String, (f64, f64))> {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), (words.next()?.parse().ok()?, words.next()?.parse().ok()?)))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// The best of some rounds.
fn best(mut measure: impl FnMut() -> Result<Costs>) -> Result<Costs> {
    let mut best = measure()?;
    for _ in 1..ROUNDS {
        for (name, costs) in measure()? {
            let kept = best.entry(name).or_insert(costs);
            *kept = (kept.0.min(costs.0), kept.1.min(costs.1));
        }
    }
    Ok(best)
}

fn figure(what: &str, measured: (f64, f64), bare: f64, judged: Judged, budget: f64) -> Figure {
    Figure {
        what: what.into(),
        unit: "ns".into(),
        p50: measured.0,
        p99: Some(measured.1),
        bare: Some(bare),
        judged,
        budget: Some(budget),
    }
}

/// Frees, questions, pairs.
pub(super) fn calls(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    let directory = TempDir::with_prefix("nvshare-bench-")?;
    let program = program(artifacts, &directory)?;
    let bare = best(|| costs(node(artifacts).client(&program)))?;
    let under = best(|| {
        let node = node(artifacts);
        let _agent = node.agent(["--no-uprobes"]);
        costs(node.client(&program).with_shim())
    })?;
    let of = |costs: &Costs, name: &str| {
        costs.get(name).copied().with_context(|| format!("no {name} was measured"))
    };
    let mut figures = Vec::new();
    for (what, name, budget) in [
        ("stream-ordered pair, warm", "pair", 1.2),
        ("pointer query, 2 extents", "ask-2-extents", 2.0),
        ("pointer query, 128 extents", "ask-128-extents", 2.0),
        ("free, few streams", "free-few-streams", 2.0),
        ("free, 195 streams", "free-many-streams", 2.0),
        ("free, 195 streams, after a context ended", "free-after-a-context", 2.0),
        ("event record", "record", 2.0),
        ("create, map, access of 64 MiB", "map", 1.2),
        ("alloc and free of 256 MiB", "plain", 1.3),
    ] {
        // The simulator frees without any work, and a pair is a few locks there; a free waits by two calls, which is an eighth of
        // one on a GPU. Extents are of 4 MiB there, so what is made and mapped is sixteen pieces, and plain memory 64, not one.
        let judged_here = has_gpu()
            || !matches!(name, "pair" | "free-few-streams" | "free-after-a-context" | "map" | "plain");
        figures.push(Figure {
            budget: judged_here.then_some(budget),
            ..figure(what, of(&under, name)?, of(&bare, name)?.0, Judged::Times, budget)
        });
    }
    // How much dearer a call gets where there is more of everything, and how much dearer bare.
    for (what, few, many) in [
        ("growth of a query, 2 to 128 extents", "ask-2-extents", "ask-128-extents"),
        ("growth of a free, few to 195 streams", "free-few-streams", "free-many-streams"),
    ] {
        let growth = |costs: &Costs| Ok::<f64, anyhow::Error>(of(costs, many)?.0 / of(costs, few)?.0);
        figures.push(Figure {
            unit: "x".into(),
            p99: None,
            ..figure(what, (growth(&under)?, 0.0), growth(&bare)?, Judged::Times, 2.0)
        });
    }
    Ok(figures)
}

/// A launch with the agent's probe on it. A single step instead of the emulated instruction costs twenty times as much.
pub(super) fn uprobes(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    if artifacts.ebpf().is_none() {
        eprintln!("uprobes: skipped, the eBPF programs were not built");
        return Ok(Vec::new());
    }
    let directory = TempDir::with_prefix("nvshare-bench-")?;
    let program = program(artifacts, &directory)?;
    let launches = |node: &Node| {
        let mut command = node.client(&program);
        command.arg("launch");
        costs(command)
    };
    let bare = best(|| launches(&node(artifacts)))?;
    let observed = best(|| {
        let node = node(artifacts);
        let _agent = node.agent([""; 0]);
        launches(&node)
    })?;
    let of = |costs: &Costs| costs.get("launch").copied().context("no launch was measured");
    Ok(vec![figure("uprobe, a hit", of(&observed)?, of(&bare)?.0, Judged::Over, 3000.0)])
}
