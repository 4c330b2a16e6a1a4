//! `cargo xtask run demo`: processes that together want three times the card, first with managed memory as today's
//! sharing does it, then under nvshare. What the figures mean is written down in docs/demo.md.

mod card;
mod clients;
mod progress;
pub(crate) mod report;
mod run;
mod state;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use nvshare_testbed::Artifacts;
use serde::Serialize;

use crate::{agent, build};
use card::Card;
use report::Report;

#[derive(Args)]
pub(crate) struct Options {
    /// Use a simulated card although there is a GPU.
    #[arg(long)]
    sim: bool,
    /// The card's size; on a GPU: how much of it the agent grants. With K, M or G behind it for powers of 1024.
    #[arg(long, default_value = "256M", value_parser = bytes)]
    card_bytes: u64,
    /// How many processes share the card; each one wants 3/4 of it.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    processes: u64,
    /// How often each process goes over its memory and verifies it. With fewer than four each is done within its first turn under
    /// the lock, and there is nothing to compare.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    iterations: u64,
    /// The simulated link's rate each way, in bytes per second.
    #[arg(long, default_value_t = 800_000_000, value_parser = clap::value_parser!(u64).range(1_000_000..))]
    link_bytes_per_second: u64,
    /// What the processes allocate under nvshare; see docs/demo.md.
    #[arg(long, default_value = "device", value_parser = MEMORY)]
    memory: String,
    /// Only this mode; may be given several times.
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Print one JSON object on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// Keep the agent's log and the clients' standard error in this directory.
    #[arg(long)]
    logs: Option<std::path::PathBuf>,
}

/// What the workload's `--memory` takes, and a demo can be made of.
const MEMORY: [&str; 7] = ["device", "vmm", "pool", "stream-ordered", "graph", "ipc", MANAGED];
/// The one that a GPU cannot hold more of than it has.
const MANAGED: &str = "managed";

/// How the processes share the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Managed memory, everybody at once.
    Managed,
    /// Managed memory, one at a time by a lock.
    ManagedSerialised,
    /// Plain memory under nvshare.
    Nvshare,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Managed, Mode::ManagedSerialised, Mode::Nvshare];

    fn name(self) -> &'static str {
        match self {
            Mode::Managed => "managed",
            Mode::ManagedSerialised => "managed-serialised",
            Mode::Nvshare => "nvshare",
        }
    }
}

/// Runs it and prints what came out.
pub(crate) fn run(options: &Options) -> Result<()> {
    let report = measure(options, build::for_demo()?)?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    ensure!(
        report.data_errors() == 0,
        "{} data errors: memory did not come back as it was",
        report.data_errors()
    );
    Ok(())
}

/// Runs it with what was built.
pub(crate) fn measure(options: &Options, artifacts: Artifacts) -> Result<Report> {
    let card = if options.sim || !agent::has_gpu() {
        Card::simulated(artifacts, options.card_bytes, options.link_bytes_per_second)
    } else {
        Card::real(artifacts, options.card_bytes)?
    };
    let bytes_each = options.card_bytes / 4 * 3;
    let modes: Vec<Mode> = if options.mode.is_empty() { Mode::ALL.to_vec() } else { options.mode.clone() };
    let progress = progress::Progress::new(modes.len() as u64 * options.processes * (options.iterations + 1));
    let mut runs = Vec::new();
    for mode in modes {
        if (mode != Mode::Nvshare || options.memory == MANAGED)
            && let Some(why) = card.cannot_hold_managed(bytes_each * options.processes)
        {
            progress.say(&format!("{} is skipped: {why}", mode.name()));
            continue;
        }
        runs.push(run::run(mode, options, &card, bytes_each, &progress)?);
    }
    progress.finish();
    Ok(Report {
        simulated: card.is_simulated(),
        card_bytes: options.card_bytes,
        processes: options.processes,
        bytes_each,
        link_bytes_per_second: card.link_bytes_per_second(),
        runs,
    })
}

impl Options {
    /// What the demo does by default, for the checks of `ci`.
    pub(crate) fn standard() -> Options {
        #[derive(clap::Parser)]
        struct Standard {
            #[command(flatten)]
            options: Options,
        }
        <Standard as clap::Parser>::parse_from(["demo", "--sim"]).options
    }

    /// Of it one mode alone.
    pub(crate) fn only(mode: Mode) -> Options {
        Options { mode: vec![mode], ..Options::standard() }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size of at least 64M: expected for example 512M or 16G");
    let (digits, shift) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes >= 64 << 20).ok_or_else(wrong)
}
