//! The agent as a service: one that knows no card, one whose directory was exchanged, one that is stared at in silence.

#![expect(unsafe_code, reason = "a limit is raised")]

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nvshare_testbed::{Pages, is_root};

use super::run::{LIMIT, Running, TURNS, agent, card, hooked, run};

#[test]
fn beside_an_agent_that_sees_no_card_programs_run_as_without_one() {
    let node = card("256M");
    fs::remove_file(node.nvml()).expect("NVML is taken away");
    let agent = node.start_agent(TURNS.iter().chain(&["--no-uprobes"]));
    nvshare_testbed::wait_for("the agent listens", LIMIT, || node.socket().exists().then_some(()));
    let workload = node.workload("--bytes 64M --buffers 2 --iterations 3").with_shim();
    run(workload).assert_well("a workload");
    drop(agent);
}

#[test]
fn a_client_that_sees_the_old_directory_does_not_keep_the_card_from_the_new_agents_clients() {
    if !is_root() {
        eprintln!("SKIPPED: only root can mount");
        return;
    }
    let node = card("256M");
    let first = agent(&node, &TURNS);
    let run_directory = node.path().join("run");
    let pod = node.path().join("pod");
    fs::create_dir(&pod).expect("a directory");
    let script = format!(
        "mount --bind {} {} && exec {} --bytes 160M --buffers 4 --seconds 14",
        run_directory.display(),
        pod.display(),
        node.artifacts().workload().display()
    );
    let mut old = node.client("unshare").with_shim();
    old.args(["-m", "sh", "-c", &script]).env("NVSHARE_SOCKET", pod.join("agent.sock"));
    let old = Running::start(&mut old);
    nvshare_testbed::wait_for("the first client is there", LIMIT, || {
        first.state()["clients"].as_array().is_some_and(|clients| !clients.is_empty()).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    first.stop();
    fs::remove_dir_all(&run_directory).expect("the old directory goes");
    fs::create_dir(&run_directory).expect("a new one");
    let _second = agent(&node, &TURNS);
    std::thread::sleep(Duration::from_secs(4));
    let newcomer = node.workload("--bytes 160M --buffers 4 --iterations 1").with_shim();
    run(newcomer).assert_well("the new agent's client");
    old.end(LIMIT).assert_well("the client with the old directory");
}

/// With another program a process has another counter page, which begins at zero.
#[test]
fn the_agents_sums_never_go_back_when_a_client_becomes_another_program() {
    let node = card("256M");
    let agent = agent(&node, &[]);
    let mut client = Running::start(&mut hooked(&node, "begins_anew", "60 20 7"));
    let launches = || -> u64 {
        let page = agent.get("/metrics").expect("the metrics").1;
        let series = "nvshare_calls_total{seen_by=\"shim\",made_by=\"application\",call=\"launch\"} ";
        page.lines().find_map(|line| line.strip_prefix(series)?.parse().ok()).unwrap_or_default()
    };
    let mut counted = 0;
    let end = Instant::now() + LIMIT;
    while client.is_running() && Instant::now() < end {
        let now = launches();
        assert!(now >= counted, "{now} after {counted}");
        counted = now;
        std::thread::sleep(Duration::from_millis(20));
    }
    client.end(LIMIT).assert_well("all three programs");
    assert!(counted >= 60, "{counted}");
    assert_eq!(agent.state()["sessions"]["opened"], 3);
}

/// The pages' port, and the one that is for the kubelet alone: whoever stares at one of them, or at both, keeps nobody from
/// being answered there. The kubelet gives up after five seconds.
#[test]
fn the_agent_says_that_it_lives_beside_thousands_of_silent_connections() {
    const SILENT: usize = 2000;
    raise_open_files();
    let node = card("256M");
    let probes = Pages::at_a_free_address();
    let address = probes.address().to_string();
    let agent = agent(&node, &[&TURNS[..], &["--probes", &address]].concat());
    let pages = Pages::at(agent.address());
    let mut silent = Vec::new();
    for (crowded, other) in [(pages, probes), (probes, pages)] {
        let crowd = (0..SILENT)
            .filter_map(|_| TcpStream::connect_timeout(&crowded.address(), Duration::from_secs(2)).ok());
        silent.extend(crowd);
        for asked in [other, crowded] {
            assert!(median_answer(asked) < Duration::from_secs(1), "beside {} connections", silent.len());
        }
    }
    assert_eq!(silent.len(), 2 * SILENT, "all were made, and all are held");
    drop(agent);
}

/// How long `/livez` takes to say that all is well.
fn median_answer(pages: Pages) -> Duration {
    let mut took: Vec<Duration> = (0..5)
        .map(|_| {
            let asked = Instant::now();
            let answer = pages.get("/livez");
            assert!(matches!(answer, Ok((200, _))), "{answer:?}");
            asked.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[2]
}

/// As many as the system allows: each connection is one.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a place for the answer, and then the answer with nothing but its first half changed.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    assert!(raised && limit.rlim_cur > 5000, "{} open files are too few for this test", limit.rlim_cur);
}
