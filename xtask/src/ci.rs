//! `cargo xtask ci`: everything that must hold before a change is merged, the demo's figures included.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;

use crate::command::{cargo, run as run_command};
use crate::demo::report::Report;
use crate::demo::{self, Mode};
use crate::{build, ebpf, test};

#[derive(Args)]
pub(crate) struct Options {
    /// Everything but the tests.
    #[arg(long)]
    without_tests: bool,
}

/// Runs everything; ends at the first thing that does not hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    step("fmt", || run_command(cargo().args(["fmt", "--all", "--check"])))?;
    step("clippy", || {
        run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    step("eBPF programs: fmt and clippy", ebpf::lint)?;
    step("doc", || {
        let mut command: Command = cargo();
        command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
        run_command(command.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("demo", check_demo)?;
    if options.without_tests {
        return Ok(());
    }
    step("test", || test::run(&test::Options::default()))
}

fn step(name: &str, what: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let start = Instant::now();
    what()?;
    eprintln!("== {name}: passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// How much longer than the link's time for its bytes a switch may take, in the best of three runs.
const SWITCH_OVER_LINK: f64 = 1.25;

/// The demo on a simulated card, and what it must show.
fn check_demo() -> Result<()> {
    let artifacts = build::artifacts(false)?;
    let report = demo::measure(&demo::Options::standard(), artifacts.clone())?;
    eprintln!("{report}");
    check_report(&report)?;
    let mut ratio = switch_over_link(&report);
    // Whatever else the machine does meanwhile can only make it longer.
    for _ in 0..2 {
        if ratio <= SWITCH_OVER_LINK {
            break;
        }
        eprintln!("a switch took {ratio:.2} x the link's time for its bytes; measured again");
        let again = demo::measure(&demo::Options::only(Mode::Nvshare), artifacts.clone())?;
        ensure!(again.data_errors() == 0, "{} data errors", again.data_errors());
        ratio = ratio.min(switch_over_link(&again));
    }
    ensure!(ratio <= SWITCH_OVER_LINK, "a switch took {ratio:.2} x the link's time for its bytes");
    Ok(())
}

fn switch_over_link(report: &Report) -> f64 {
    report.run(Mode::Nvshare).and_then(|run| run.switch_over_link).unwrap_or(f64::INFINITY)
}

fn check_report(report: &Report) -> Result<()> {
    ensure!(report.data_errors() == 0, "{} data errors", report.data_errors());
    let (Some(managed), Some(serialised), Some(nvshare)) =
        (report.run(Mode::Managed), report.run(Mode::ManagedSerialised), report.run(Mode::Nvshare))
    else {
        anyhow::bail!("a mode is missing");
    };
    ensure!(
        nvshare.seconds < managed.seconds && nvshare.seconds < serialised.seconds,
        "nvshare took {:.1} s, managed memory {:.1} s, serialised {:.1} s",
        nvshare.seconds,
        managed.seconds,
        serialised.seconds
    );
    ensure!(nvshare.switches > 0, "nobody was ever switched");
    let events = nvshare.events.as_ref().expect("nvshare's run has events");
    for count in events.application.iter().chain(&events.engine) {
        ensure!(
            count.expected == count.seen,
            "{}: the shims made {} calls, the uprobes saw {}",
            count.call,
            count.expected,
            count.seen
        );
    }
    ensure!(nvshare.events_lost == 0, "{} events were lost", nvshare.events_lost);
    ensure!(nvshare.events_seen > 0, "the uprobes saw nothing");
    Ok(())
}
