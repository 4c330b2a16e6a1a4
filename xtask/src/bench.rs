//! `cargo xtask bench`: runs the benchmarks and compares what they measured with the budgets.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build;
use crate::command::{cargo, run as run_command};

/// A budget: criterion's ids of what is measured and of what it is compared with, and how many nanoseconds the one may
/// take longer than the other.
struct Budget {
    what: &'static str,
    measured: &'static str,
    bare: Option<&'static str>,
    nanoseconds: f64,
}

const BUDGETS: [Budget; 4] = [
    Budget {
        what: "gate, open, over the bare call",
        measured: "gate/open",
        bare: Some("gate/bare"),
        nanoseconds: 5.0,
    },
    Budget {
        what: "whole launch hook, over the bare call",
        measured: "launch/hooked",
        bare: Some("launch/bare"),
        nanoseconds: 20.0,
    },
    Budget {
        what: "one decision, 1,000 clients (median)",
        measured: "decide_1000_clients",
        bare: None,
        nanoseconds: 1e6,
    },
    Budget {
        what: "one scrape of /metrics, 1,000 clients (median)",
        measured: "scrape_1000_clients",
        bare: None,
        nanoseconds: 20e6,
    },
];

/// Runs all benchmarks and prints the table; an error if a budget is not met.
pub(crate) fn run() -> Result<()> {
    let artifacts = build::run(&build::Options { release: true })?;
    run_command(
        cargo()
            .args(["bench", "--package", "nvshare-shim", "--package", "nvshare-agent", "--benches"])
            .env("NVSHARE_ARTIFACTS", artifacts.directory()),
    )?;
    println!("\n{:48} {:>14} {:>14}", "", "measured", "budget");
    let mut missed = Vec::new();
    for Budget { what, measured, bare, nanoseconds } in BUDGETS {
        let time = median(measured)? - bare.map_or(Ok(0.0), median)?;
        println!("{what:48} {time:>11.1} ns {nanoseconds:>11.1} ns");
        if time > nanoseconds {
            missed.push(what);
        }
    }
    ensure!(missed.is_empty(), "budgets not met: {}", missed.join("; "));
    Ok(())
}

/// The median that criterion found, in nanoseconds.
fn median(id: &str) -> Result<f64> {
    let path = build::target().join("criterion").join(id).join("new/estimates.json");
    let text = fs::read_to_string(&path).with_context(|| format!("no result in {}", path.display()))?;
    let estimates: Value = serde_json::from_str(&text)?;
    estimates["median"]["point_estimate"].as_f64().with_context(|| format!("no median in {}", path.display()))
}
