//! `cargo xtask bench`: a line for every budget, with the median, the 99th percentile and the ratio to bare, each story to be
//! run alone; and how the figures differ from an earlier run's. Figures of the simulator show overheads and ratios.
//!
//! [`figure`] is what a line holds, [`mod@file`] keeps runs; the stories: [`criterion`] (pure code), [`calls`] (single driver calls),
//! [`life`] (what costs while nothing happens), [`turns`] (switches and batches).

mod calls;
mod criterion;
mod figure;
mod file;
mod life;
mod turns;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use nvshare_testbed::Artifacts;

use self::figure::Figure;
use crate::build;

#[derive(Args)]
pub(crate) struct Options {
    /// Which stories; all of them if none is named.
    stories: Vec<String>,
    /// Names the stories, and runs nothing.
    #[arg(long)]
    list: bool,
    /// An earlier run's file (target/bench/*.json) to compare with; otherwise the last one's, if there is one.
    #[arg(long)]
    against: Option<PathBuf>,
}

/// A story: its name, what it measures, and how.
type Story = (&'static str, &'static str, fn(&Artifacts) -> Result<Vec<Figure>>);

const STORIES: &[Story] = &[
    ("calls", "frees, questions and stream-ordered pairs, with few and many of everything", calls::calls),
    ("uprobes", "what a probed call costs while the agent observes (needs root)", calls::uprobes),
    ("start", "the library in a process that never uses CUDA", life::start),
    ("rest", "the agent with 100 idle clients", life::rest),
    ("switch", "a switch between clients, over the link's time for its bytes", turns::switch),
    ("clean", "what clients copy out that only read", turns::clean),
    ("batch", "jobs that share a card, over the same jobs one after another", turns::batch),
    // Last: they build the library once more, for Rust programs, and not optimised as a whole.
    ("hooks", "the gate and a launch, in front of a driver that does nothing", criterion::hooks),
    ("agent", "a decision, and a scrape of /metrics, with 1,000 clients", criterion::agent),
];

/// Runs what is asked for and prints the table; an error if a budget is not met.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        for (name, what, _) in STORIES {
            println!("{name:10} {what}");
        }
        return Ok(());
    }
    for name in &options.stories {
        ensure!(
            STORIES.iter().any(|(known, ..)| known == name),
            "there is no story `{name}`: `cargo xtask bench --list` names them"
        );
    }
    let earlier = file::earlier(options.against.as_deref())?;
    let artifacts = build::artifacts(true)?;
    let mut figures = Vec::new();
    for (name, what, measure) in STORIES {
        if options.stories.is_empty() || options.stories.iter().any(|chosen| chosen == name) {
            eprintln!("== {name}: {what}");
            figures.extend(measure(&artifacts)?);
        }
    }
    println!("\n{}", Figure::HEAD);
    for figure in &figures {
        println!("{}", figure.line(earlier.get(&figure.what).copied()));
    }
    let kept = file::keep(&figures)?;
    println!("\nkept in {}", kept.display());
    let missed: Vec<&str> =
        figures.iter().filter(|figure| !figure.is_met()).map(|figure| figure.what.as_str()).collect();
    ensure!(missed.is_empty(), "budgets not met: {}", missed.join("; "));
    Ok(())
}
