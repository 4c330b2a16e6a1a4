//! One mode of the demo: start everything, watch it, take the figures.

use anyhow::Result;
use nvshare_testbed::Node;

use super::card::Card;
use super::clients::{self, Outcome};
use super::progress::Progress;
use super::report::Run;
use super::state::{Watch, median};
use super::{MANAGED, Mode, Options};

/// How long a process keeps the card while others wait, in both modes that take turns.
const QUANTUM: &str = "1s";
/// In how many allocations each process holds its memory.
const BUFFERS: &str = "16";
/// How many times a step goes over each of them: what a process computes on a byte once it is there. It waits
/// for each buffer, as programs that serve requests do: a switch has to let what was submitted run to its end.
const PASSES: &str = "4";

/// Runs the processes in one mode on a fresh node.
pub(crate) fn run(
    mode: Mode,
    options: &Options,
    card: &Card,
    bytes_each: u64,
    progress: &Progress,
) -> Result<Run> {
    progress.phase(&format!("{}: {} processes", mode.name(), options.processes));
    let node = card.node();
    let commands = |with_shim: bool| {
        let node = &node;
        (0..options.processes).map(move |number| {
            let mut client = node.client(node.artifacts().workload());
            if with_shim {
                client = client.with_shim();
            }
            client.args(["--json", "--progress", "--bytes", &bytes_each.to_string()]);
            client.args(["--buffers", BUFFERS, "--passes", PASSES, "--queue", PASSES]);
            client.args(["--iterations", &options.iterations.to_string()]);
            client.args(["--seed", &(number + 1).to_string()]);
            client
        })
    };
    match mode {
        Mode::Nvshare => {
            let agent = node.agent(card.agent_flags(QUANTUM));
            let mut watch = Watch::new(&agent);
            let commands = commands(true).map(|mut client| {
                client.args(["--memory", &options.memory]);
                client
            });
            let (outcomes, seconds) = clients::run(commands.collect(), progress, || watch.look())?;
            let figures = watch.finish(card.link_bytes_per_second(), options.processes);
            if let Some(directory) = &options.logs {
                std::fs::create_dir_all(directory)?;
                std::fs::write(directory.join("agent.log"), agent.log())?;
                std::fs::write(directory.join("state.json"), serde_json::to_string_pretty(&agent.state())?)?;
            }
            agent.stop();
            let figures = figures?;
            complain(&node, progress);
            Ok(Run {
                mode,
                seconds: seconds.as_secs_f64(),
                data_errors: outcomes.iter().map(|outcome| outcome.data_errors).sum(),
                ..figures
            })
        }
        Mode::Managed | Mode::ManagedSerialised => {
            let lock = node.path().join("turns");
            let serialised = mode == Mode::ManagedSerialised;
            let commands = commands(false).map(|mut client| {
                client.args(["--memory", MANAGED]);
                if serialised {
                    client.arg("--turns").arg(&lock).args(["--quantum", QUANTUM]);
                }
                client
            });
            let (outcomes, seconds) = clients::run(commands.collect(), progress, || ())?;
            let moved = card.bytes_moved(&node)?;
            complain(&node, progress);
            Ok(managed(
                mode,
                &outcomes,
                seconds.as_secs_f64(),
                moved,
                (bytes_each, card.link_bytes_per_second()),
            ))
        }
    }
}

/// The simulator's complaints, if there are any.
fn complain(node: &Node, progress: &Progress) {
    for violation in node.violations() {
        progress.say(&format!("the simulator complains: {violation}"));
    }
}

/// The figures of a run with managed memory.
fn managed(
    mode: Mode,
    outcomes: &[Outcome],
    seconds: f64,
    moved: Option<u64>,
    (bytes_each, link): (u64, u64),
) -> Run {
    let slowest = |time: fn(&Outcome) -> f64| outcomes.iter().map(time).fold(0.0, f64::max);
    let switches = outcomes.iter().map(|outcome| outcome.switches).sum::<u64>();
    // What the first step of a turn takes longer than the fastest one, which found everything in place.
    let costs = outcomes.iter().map(|outcome| outcome.first_steps.median - outcome.steps.fastest).collect();
    let switch = if mode == Mode::ManagedSerialised { median(costs) } else { None };
    Run {
        mode,
        seconds,
        slowest_first_response_seconds: match mode {
            Mode::ManagedSerialised => slowest(|outcome| outcome.first_steps.slowest),
            _ => slowest(|outcome| outcome.steps.slowest),
        },
        bytes_moved: moved,
        switches,
        switch_seconds_median: switch,
        switch_over_link: switch.map(|seconds| seconds / (bytes_each as f64 / link as f64)),
        drain_seconds_median: None,
        data_errors: outcomes.iter().map(|outcome| outcome.data_errors).sum(),
        events_expected: 0,
        events_seen: 0,
        events_lost: 0,
        events: None,
    }
}
