//! An agent whose clients are idle is at rest. By themselves here: the drivers that other tests bring to the machine are
//! work for every agent that observes, if only to find that they are none of its node.

#![expect(unsafe_code, reason = "a number is asked of the system")]

#[expect(dead_code, reason = "the cases use all of it")]
#[path = "cases/programs.rs"]
mod programs;
#[expect(dead_code, reason = "the cases use all of it")]
#[path = "cases/run.rs"]
mod run;

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use nvshare_testbed::{Agent, Node};

use run::{LIMIT, Running, TURNS, agent, cards, hooked, observed};

/// One after the other.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn an_agent_whose_clients_are_idle_is_at_rest() {
    let _alone = ALONE.lock();
    let node = cards(1, "1G").build();
    assert_at_rest(&node, &agent(&node, &TURNS));
}

#[test]
fn an_agent_that_observes_idle_clients_is_at_rest() {
    let _alone = ALONE.lock();
    let Some(node) = observed(cards(1, "1G")) else { return };
    let agent = node.agent(TURNS);
    nvshare_testbed::wait_for("the driver is observed", LIMIT, || {
        let state = agent.try_state().ok()?;
        (!state["observer"]["attachments"].as_array()?.is_empty()).then_some(())
    });
    assert_at_rest(&node, &agent);
}

fn assert_at_rest(node: &Node, agent: &Agent) {
    const CLIENTS: usize = 60;
    let mut clients: Vec<Running> =
        (0..CLIENTS).map(|_| Running::start(&mut hooked(node, "idle", "120"))).collect();
    for client in &mut clients {
        client.wait_for("ready");
    }
    std::thread::sleep(Duration::from_secs(2));
    // The budget is half a percent, of a release build on a quiet machine (`cargo xtask bench`); it once was 7.
    let share = (0..3)
        .map(|_| {
            let before = seconds_of_work(agent.id());
            std::thread::sleep(Duration::from_secs(4));
            (seconds_of_work(agent.id()) - before) / 4.0
        })
        .fold(f64::INFINITY, f64::min);
    assert!(share < 0.02, "{:.1} % of a core beside {CLIENTS} idle clients", share * 100.0);
}

/// How long a process has worked, by the kernel's account.
fn seconds_of_work(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the agent runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
    // SAFETY: only asks for a number.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}
