//! What costs while nothing happens: the library in processes without CUDA, the agent with idle clients.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvshare_testbed::{Artifacts, Node, wait_for};

use super::figure::{Figure, Judged, percentile};

/// Processes that are started, with the library and without, in turns.
const STARTS: usize = 1000;
const IDLE_CLIENTS: usize = 100;
/// How long the agent is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// A process that never uses CUDA: how much longer it takes from start to end, and that it has one thread.
pub(super) fn start(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    let one = |shim: bool| -> Result<f64> {
        let mut command = Command::new("/bin/true");
        if shim {
            command.env("LD_PRELOAD", artifacts.shim());
        }
        let begun = Instant::now();
        let status = command.status().context("cannot start /bin/true")?;
        ensure!(status.success(), "/bin/true: {status}");
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    };
    let (mut bare, mut under) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        bare.push(one(false)?);
        under.push(one(true)?);
    }
    bare.sort_by(f64::total_cmp);
    under.sort_by(f64::total_cmp);
    let mut child = Command::new("/bin/sleep").arg("10").env("LD_PRELOAD", artifacts.shim()).spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    let threads = fs::read_dir(format!("/proc/{}/task", child.id()))?.count();
    child.kill()?;
    child.wait()?;
    let figure = |what: &str, unit: &str, p50, p99, bare, judged, budget| Figure {
        what: what.into(),
        unit: unit.into(),
        p50,
        p99,
        bare,
        judged,
        budget: Some(budget),
    };
    Ok(vec![
        figure(
            "start of a process without CUDA",
            "us",
            percentile(&under, 0.5),
            Some(percentile(&under, 0.99)),
            Some(percentile(&bare, 0.5)),
            Judged::Over,
            100.0,
        ),
        figure("threads of a process without CUDA", "", threads as f64, None, None, Judged::Median, 1.0),
    ])
}

/// Clients that ended with the value.
struct Clients(Vec<Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.0 {
            let _ = client.kill();
            let _ = client.wait();
        }
    }
}

/// The agent with clients that hold memory and do nothing: without uprobes, and with them where this process may have them.
pub(super) fn rest(artifacts: &Artifacts) -> Result<Vec<Figure>> {
    let mut figures = rest_of(artifacts, false)?;
    let root = fs::metadata("/proc/self").context("no /proc")?.uid() == 0;
    if root && artifacts.ebpf().is_some() {
        figures.extend(rest_of(artifacts, true)?);
    } else {
        eprintln!("SKIPPED: the agent at rest with uprobes needs root and the built eBPF programs");
    }
    Ok(figures)
}

fn rest_of(artifacts: &Artifacts, uprobes: bool) -> Result<Vec<Figure>> {
    let node = Node::builder()
        .artifacts(artifacts.clone())
        .env("NVSHARE_SIM_CARD_BYTES", "2G")
        .env("NVSHARE_SIM_CONTEXT_BYTES", "8M")
        .build();
    let agent = node.agent((!uprobes).then_some("--no-uprobes"));
    if uprobes {
        wait_for("the driver is observed", Duration::from_mins(1), || {
            let state = agent.try_state().ok()?;
            (!state["observer"]["attachments"].as_array()?.is_empty()).then_some(())
        });
    }
    let mut clients = Clients(Vec::new());
    for _ in 0..IDLE_CLIENTS {
        let mut command = node.workload("--bytes 2M --buffers 1 --wait").with_shim();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        clients.0.push(command.spawn().context("cannot start a client")?);
    }
    wait_for("all clients are there", Duration::from_mins(2), || {
        let state = agent.try_state().ok()?;
        (state["clients"].as_array()?.len() == IDLE_CLIENTS).then_some(())
    });
    std::thread::sleep(Duration::from_secs(5));
    let before = seconds_of_work(agent.id())?;
    std::thread::sleep(WATCHED);
    let share = (seconds_of_work(agent.id())? - before) / WATCHED.as_secs_f64() * 100.0;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok())
        .context("the kernel does not say how large the agent is")?;
    let figure = |what: &str, unit: &str, p50, budget| Figure {
        what: what.into(),
        unit: unit.into(),
        p50,
        p99: None,
        bare: None,
        judged: Judged::Median,
        budget: Some(budget),
    };
    let beside = if uprobes { "100 idle clients, uprobes attached" } else { "100 idle clients" };
    Ok(vec![
        figure(&format!("agent at rest, {beside}"), "% core", share, 0.5),
        figure(&format!("agent's memory, {beside}"), "MiB", kilobytes / 1024.0, 64.0),
    ])
}

/// How long a process has worked, by the kernel's account.
fn seconds_of_work(pid: u32) -> Result<f64> {
    // Hundredths of a second on every Linux of today, whatever the kernel counts in.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the agent is gone")?;
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS)
}
