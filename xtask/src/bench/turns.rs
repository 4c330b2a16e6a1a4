//! What turns cost: switches over the link, copies of clients that only read, jobs that share a card.

use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nvshare_testbed::{Agent, Artifacts, Node};

use super::figure::{Figure, Judged};
use crate::demo::{self, Mode};

fn figure(what: &str, unit: &str, p50: f64, bare: Option<f64>, judged: Judged, budget: f64) -> Figure {
    Figure { what: what.into(), unit: unit.into(), p50, p99: None, bare, judged, budget: Some(budget) }
}

/// The demo's switches.
pub(super) fn switch(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    let report = demo::measure(&demo::Options::only(Mode::Nvshare), artifacts.clone())?;
    let run = report.run(Mode::Nvshare).context("the demo ran in another mode")?;
    ensure!(run.data_errors == 0, "{} data errors", run.data_errors);
    let ratio = run.switch_over_link.context("the demo saw no switch")?;
    Ok(vec![figure("switch over the link's time", "x", ratio, None, Judged::Median, 1.05)])
}

fn node(artifacts: &Artifacts) -> Node {
    Node::builder()
        .artifacts(artifacts.clone())
        .env("NVSHARE_SIM_CARD_BYTES", "256M")
        .env("NVSHARE_SIM_CONTEXT_BYTES", "8M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "1000000000")
        .build()
}

/// Starts workloads with the library.
fn started(node: &Node, count: u64, flags: &str) -> Result<Vec<Child>> {
    (0..count)
        .map(|seed| {
            let mut command = node.workload(&format!("{flags} --seed {seed}")).with_shim();
            command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start a workload")
        })
        .collect()
}

/// Waits for all of them; each checks every byte.
fn finished(workloads: Vec<Child>) -> Result<()> {
    for mut workload in workloads {
        let status = workload.wait()?;
        ensure!(status.success(), "a workload failed: {status}");
    }
    Ok(())
}

fn metric(agent: &Agent, name: &str) -> Result<f64> {
    let (_, text) = agent.get("/metrics")?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    line.rsplit(' ')
        .next()
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("no number in {line}"))
}

/// Two clients that read weights, in short turns: after the first time nothing has to be copied out.
pub(super) fn clean(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    let node = node(artifacts);
    let agent = node.agent(["--no-uprobes", "--lease-floor", "200ms", "--lease-ceiling", "400ms"]);
    let clients = started(&node, 2, "--bytes 160M --buffers 8 --read-only-share 1 --seconds 12")?;
    // The first turns write the shadows.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let copied = |agent: &Agent| metric(agent, "nvshare_swap_bytes_total{direction=\"out\"}");
    let clean = |agent: &Agent| metric(agent, "nvshare_swap_clean_bytes_total");
    let before = (copied(&agent)?, clean(&agent)?);
    std::thread::sleep(std::time::Duration::from_secs(6));
    let (copied, clean) = (copied(&agent)? - before.0, clean(&agent)? - before.1);
    finished(clients)?;
    ensure!(copied + clean > 0.0, "nobody was ever swapped out");
    let share = copied / (copied + clean) * 100.0;
    Ok(vec![figure("copied out by clients that only read", "%", share, None, Judged::Median, 2.0)])
}

/// Jobs that want twice the card together, over the same jobs one after another.
pub(super) fn batch(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    const JOBS: u64 = 3;
    const JOB: &str = "--bytes 160M --buffers 8 --iterations 60 --passes 4";
    let node = node(artifacts);
    let alone = Instant::now();
    for _ in 0..JOBS {
        finished(started(&node, 1, JOB)?)?;
    }
    let alone = alone.elapsed().as_secs_f64();
    let _agent = node.agent(["--no-uprobes"]);
    let together = Instant::now();
    finished(started(&node, JOBS, JOB)?)?;
    let together = together.elapsed().as_secs_f64();
    Ok(vec![
        figure("throughput of 3 jobs over one by one", "x", alone / together, None, Judged::AtLeast, 0.97),
        figure("3 jobs together", "s", together, Some(alone), Judged::Times, 1.0 / 0.97),
    ])
}
