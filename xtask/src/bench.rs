//! `cargo xtask bench`: runs the benchmarks and compares what they measured with the budgets.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build;
use crate::command::{cargo, root, run as run_command};

/// A benchmark that has a budget: criterion's id, what is measured, and how many nanoseconds it may take.
const BUDGETS: [(&str, &str, f64); 2] = [
    ("gate", "gate, open: over the bare call", 5.0),
    ("launch_hook", "whole launch hook: over the bare call", 20.0),
];

/// Runs all benchmarks and prints the table; an error if a budget is not met.
pub(crate) fn run() -> Result<()> {
    let artifacts = build::run(&build::Options { release: true })?;
    run_command(
        cargo()
            .args(["bench", "--package", "nvshare-shim", "--package", "nvshare-agent", "--benches"])
            .env("NVSHARE_ARTIFACTS", artifacts.directory()),
    )?;
    println!("{:40} {:>12} {:>12}", "", "measured", "budget");
    let mut missed = Vec::new();
    for (id, what, budget) in BUDGETS {
        let time = median(&root().join("target/criterion").join(id))?;
        println!("{what:40} {time:>9.1} ns {budget:>9.1} ns");
        if time > budget {
            missed.push(what);
        }
    }
    ensure!(missed.is_empty(), "budgets not met: {}", missed.join(", "));
    Ok(())
}

/// The median that criterion found, in nanoseconds.
fn median(directory: &Path) -> Result<f64> {
    let path = directory.join("new/estimates.json");
    let text = fs::read_to_string(&path).with_context(|| format!("no result in {}", path.display()))?;
    let estimates: Value = serde_json::from_str(&text)?;
    estimates["median"]["point_estimate"].as_f64().with_context(|| format!("no median in {}", path.display()))
}
