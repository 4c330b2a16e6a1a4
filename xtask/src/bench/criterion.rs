//! What criterion measures: pure code, and hooks in front of a driver that does nothing.

use std::fs;

use anyhow::{Context, Result};
use nvshare_testbed::Artifacts;
use serde_json::Value;

use super::figure::{Figure, Judged, percentile};
use crate::build;
use crate::command::{cargo, run as run_command};

/// The gate, and a launch.
pub(super) fn hooks(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    benches("nvshare-shim", artifacts)?;
    Ok(vec![
        compared("gate, open", "gate/open", "gate/bare", 5.0)?,
        compared("launch hook", "launch/hooked", "launch/bare", 20.0)?,
    ])
}

/// A turn of the conductor, and a scrape.
pub(super) fn agent(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    benches("nvshare-agent-core", artifacts)?;
    benches("nvshare-agent", artifacts)?;
    Ok(vec![
        alone("decide, 1,000 clients", "decide_1000_clients", 1.0)?,
        alone("turn, 1,000 clients, 8 cards, a room request each", "turn_1000_clients", 1.0)?,
        alone("scrape, 1,000 clients", "scrape_1000_clients", 20.0)?,
    ])
}

fn benches(package: &str, artifacts: &Artifacts) -> Result<()> {
    run_command(
        cargo()
            .args(["bench", "--package", package, "--benches"])
            .env("NVSHARE_ARTIFACTS", artifacts.directory()),
    )
}

fn compared(what: &str, id: &str, bare: &str, budget: f64) -> Result<Figure> {
    let (times, bare) = (times(id)?, times(bare)?);
    Ok(Figure {
        what: what.into(),
        unit: "ns".into(),
        p50: percentile(&times, 0.5),
        p99: Some(percentile(&times, 0.99)),
        bare: Some(percentile(&bare, 0.5)),
        judged: Judged::Over,
        budget: Some(budget),
    })
}

/// In milliseconds; it is the 99th percentile that counts.
fn alone(what: &str, id: &str, budget: f64) -> Result<Figure> {
    let times: Vec<f64> = times(id)?.iter().map(|nanoseconds| nanoseconds / 1e6).collect();
    Ok(Figure {
        what: what.into(),
        unit: "ms".into(),
        p50: percentile(&times, 0.5),
        p99: Some(percentile(&times, 0.99)),
        bare: None,
        judged: Judged::Percentile,
        budget: Some(budget),
    })
}

/// The nanoseconds that criterion's samples took, each the mean of the iterations in it; sorted.
fn times(id: &str) -> Result<Vec<f64>> {
    let path = build::target().join("criterion").join(id).join("new/sample.json");
    let text = fs::read_to_string(&path).with_context(|| format!("no result in {}", path.display()))?;
    let sample: Value = serde_json::from_str(&text)?;
    let numbers =
        |name: &str| -> Option<Vec<f64>> { sample[name].as_array()?.iter().map(Value::as_f64).collect() };
    let (iterations, totals) = numbers("iters")
        .zip(numbers("times"))
        .with_context(|| format!("no samples in {}", path.display()))?;
    let mut times: Vec<f64> =
        iterations.iter().zip(&totals).map(|(iterations, total)| total / iterations).collect();
    times.sort_by(f64::total_cmp);
    Ok(times)
}
