//! Managed memory, counted for the agent by what stands for NVIDIA's module on simulated cards: whose it is that moves, what the
//! agent does about it, and that it keeps nobody's memory. With real uprobes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nvshare_sim_card::{Cards, Config};
use nvshare_testbed::{Agent, Client, ClientCommand, Node, signal, wait_for};

use super::run::{LIMIT, Running, TURNS, bare, cards, hooked, observed};

const MIB: u64 = 1 << 20;
const COUNTERS: &str = "--uvm-counters";

/// What the agent says of a process's managed memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moved {
    to_device: u64,
    to_host: u64,
    faults: u64,
}

/// Of a client, or of a program without the library; nothing while it knows nobody.
fn moved(agent: &Agent, process: u32) -> Option<Moved> {
    let state = agent.state();
    let of = |list: &str| {
        let all = state[list].as_array()?.iter();
        all.into_iter().find(|one| one["process"]["pid"] == process).cloned()
    };
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
    if let Some(client) = of("clients") {
        let device = &client["devices"][0];
        let [to_device, to_host, faults] =
            ["uvm_in", "uvm_out", "uvm_faults"].map(|name| number(&device[name]));
        return Some(Moved { to_device, to_host, faults });
    }
    let program = of("processes")?;
    let [to_device, all, faults] =
        ["uvm_to_device", "uvm_bytes", "uvm_faults"].map(|name| number(&program[name]));
    Some(Moved { to_device, to_host: all - to_device, faults })
}

/// Waits until the agent says so much of a process, within 5 %.
#[track_caller]
fn assert_moved(agent: &Agent, process: u32, expected: Moved) {
    let near = |said: u64, expected: u64| said.abs_diff(expected) * 20 <= expected;
    let end = Instant::now() + LIMIT / 3;
    loop {
        let said = moved(agent, process).unwrap_or_default();
        if near(said.to_device, expected.to_device)
            && near(said.to_host, expected.to_host)
            && near(said.faults, expected.faults)
        {
            return;
        }
        assert!(Instant::now() < end, "{said:?}, not {expected:?}; {}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn start(mut command: ClientCommand) -> Running {
    let mut program = Running::start(&mut command);
    program.wait_for("ready");
    program
}

/// Lets a program go on, and waits until it has come so far.
fn on(program: &mut Running, until: &str) {
    program.tell();
    program.wait_for(until);
}

/// Programs that came before the agent and after it, and some that do nothing.
fn counted(program: impl Fn(&Node, &str, &str) -> ClientCommand) {
    let Some(node) = observed(cards(1, "256M")) else { return };
    let program =
        |mib: &str, rounds: &str| start(program(&node, "managed_moves", &format!("{mib} {rounds}")));
    let (mut early, idle) = (program("32", "3"), program("32", "3"));
    let agent = node.agent(TURNS.iter().chain(&[COUNTERS]));
    let (mut late, other) = (program("24", "5"), program("24", "5"));
    on(&mut early, "moved");
    on(&mut late, "moved");
    let both = |mib: u64, faults| Moved { to_device: mib * MIB, to_host: mib * MIB, faults };
    assert_moved(&agent, early.id(), both(96, 48));
    assert_moved(&agent, late.id(), both(120, 60));
    for nobody in [&idle, &other] {
        assert_eq!(moved(&agent, nobody.id()).unwrap_or_default(), Moved::default());
    }
    assert_eq!(agent.state()["observer"]["uvm"]["source"], "tools");
    on(&mut late, "there");
    assert_moved(&agent, late.id(), Moved { to_device: 144 * MIB, faults: 72, ..both(120, 0) });
    on(&mut early, "there");
    for mut program in [early, late] {
        program.tell();
        program.end(LIMIT).assert_well("a program whose managed memory moves");
    }
    assert_eq!(node.violations(), [""; 0]);
}

#[test]
fn what_moves_of_a_program_is_known_of_it_alone_whether_it_or_the_agent_came_first() {
    counted(bare);
}

#[test]
fn what_moves_of_a_client_is_known_of_it_alone_whether_it_or_the_agent_came_first() {
    counted(hooked);
}

#[test]
fn what_leaves_for_others_is_counted_of_whose_memory_leaves() {
    // Three contexts take 24 MiB of it.
    let Some(node) = observed(cards(1, "128M")) else { return };
    let agent = node.agent(TURNS.iter().chain(&[COUNTERS]));
    let mut first = start(bare(&node, "managed_moves", "32 0"));
    let mut second = start(bare(&node, "managed_moves", "88 0"));
    let resting = start(bare(&node, "managed_moves", "8 0"));
    for program in [&mut first, &mut second] {
        on(program, "moved");
        on(program, "there");
    }
    let here = |mib: u64| Moved { to_device: mib * MIB, to_host: 0, faults: mib / 2 };
    assert_moved(&agent, first.id(), Moved { to_host: 16 * MIB, ..here(32) });
    assert_moved(&agent, second.id(), here(88));
    assert_moved(&agent, resting.id(), Moved::default());
}

/// Whether the card has memory of this process.
fn holds(node: &Node, process: u32) -> bool {
    let directory = node.card().expect("a simulated card");
    let cards = Cards::open(directory, &Config::default()).expect("the node's card");
    cards.usage(0).processes.iter().any(|(owner, _)| *owner == process)
}

/// A program with managed memory on the card that the agent counts.
fn counted_there(node: &Node, agent: &Agent) -> Running {
    let mut program = start(bare(node, "managed_moves", "32 0"));
    on(&mut program, "moved");
    on(&mut program, "there");
    assert_moved(agent, program.id(), Moved { to_device: 32 * MIB, to_host: 0, faults: 16 });
    assert!(holds(node, program.id()));
    program
}

/// Kills it, and waits for its end.
fn kill(program: Running) -> u32 {
    let id = program.id();
    signal(id, libc::SIGKILL).expect("a program of ours");
    program.end(LIMIT);
    id
}

/// Whether each thread of a process has heard that it is to stop.
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("its threads").flatten();
    let state =
        |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    threads.map(state).all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
}

#[test]
fn a_counted_program_that_is_killed_keeps_its_memory_no_longer_than_the_agent_sleeps() {
    let Some(node) = observed(cards(1, "256M")) else { return };
    let agent = node.agent(TURNS.iter().chain(&[COUNTERS]));
    for _ in 0..3 {
        let program = kill(counted_there(&node, &agent));
        let since = Instant::now();
        wait_for("its memory is free", LIMIT, || (!holds(&node, program)).then_some(()));
        eprintln!("free {:?} after its end", since.elapsed());
    }
    let program = counted_there(&node, &agent);
    signal(agent.id(), libc::SIGSTOP).expect("the agent");
    wait_for("all of the agent sleeps", LIMIT, || is_stopped(agent.id()).then_some(()));
    let program = kill(program);
    std::thread::sleep(Duration::from_millis(300));
    let kept = holds(&node, program);
    signal(agent.id(), libc::SIGCONT).expect("the agent");
    assert!(kept, "nothing was counted, or its descriptor keeps nothing");
    wait_for("the agent lets go", LIMIT, || (!holds(&node, program)).then_some(()));
    wait_for("nobody is counted", LIMIT, || {
        (agent.state()["observer"]["uvm"]["followed"] == 0).then_some(())
    });
}

/// What was seen of clients while two of them thrash beside a third.
#[derive(Debug, Default)]
struct Turns {
    thrash: BTreeSet<u64>,
    stops: BTreeMap<u64, u64>,
    seconds: f64,
}

/// Two that need three quarters of the card each, and one that fits.
fn thrashing(flags: &[&str]) -> Option<(Turns, [u64; 2], u64)> {
    let small = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "64M")
        .env("NVSHARE_SIM_CONTEXT_BYTES", "2M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "400000000");
    let node = observed(small)?;
    let settings = ["--lease-floor", "500ms", "--lease-ceiling", "4s", "--reserve", "2M"];
    let agent = node.agent(settings.iter().chain(flags));
    let over = node.path().join("over");
    let fits = format!("--bytes 4M --buffers 2 --pause 50ms --until {}", over.display());
    let mut third = Client::start(&mut node.workload(&fits).with_shim());
    wait_for("the third", LIMIT, || {
        (agent.state()["clients"][0]["devices"][0]["granted"].as_u64()? > 0).then_some(())
    });
    let mut pair = [1, 2].map(|seed| {
        let flags = format!("--memory managed --bytes 48M --buffers 4 --iterations 6 --seed {seed}");
        Client::start(&mut node.workload(&flags).with_shim())
    });
    let ids = [u64::from(pair[0].id()), u64::from(pair[1].id())];
    let (mut turns, began) = (Turns::default(), Instant::now());
    std::thread::scope(|scope| {
        let ends = scope.spawn(|| pair.each_mut().map(Client::succeed));
        while !ends.is_finished() {
            for client in agent.state()["clients"].as_array().into_iter().flatten() {
                let pid = client["process"]["pid"].as_u64().expect("a process");
                turns.stops.insert(pid, client["totals"]["stops"].as_u64().expect("a count"));
                if client["notes"].to_string().contains("its managed memory thrashes") {
                    turns.thrash.insert(pid);
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        ends.join().expect("both end well");
    });
    turns.seconds = began.elapsed().as_secs_f64();
    std::fs::write(&over, "").expect("a file");
    third.succeed();
    assert_eq!(node.violations(), [""; 0]);
    Some((turns, ids, u64::from(third.id())))
}

#[test]
fn two_whose_managed_memory_thrashes_take_turns_and_one_that_fits_is_left_alone() {
    let Some((turns, pair, third)) = thrashing(&[COUNTERS]) else { return };
    let Some((without, ..)) = thrashing(&[]) else { return };
    eprintln!("in turns {:.1} s, side by side {:.1} s; {turns:?}", turns.seconds, without.seconds);
    assert!(pair.iter().all(|client| turns.thrash.contains(client)), "{turns:?}");
    assert!(pair.iter().any(|client| turns.stops[client] > 0), "{turns:?}");
    assert!(!turns.thrash.contains(&third) && turns.stops[&third] == 0, "{turns:?}");
    assert!(without.thrash.is_empty(), "nobody counted: {without:?}");
}
