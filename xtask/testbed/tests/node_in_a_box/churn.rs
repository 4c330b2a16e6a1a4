//! Pods that come and go: what the agent has of them goes with them. Their programs are plain processes in pods' cgroups,
//! because 200 containers would take minutes.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::time::Duration;

use nvshare_testbed::kubernetes::{Api, NODE, pod};
use nvshare_testbed::{Agent, Cgroups, Client, Node, wait_for};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::node::LIMIT;

const PODS: usize = 200;
const AT_A_TIME: usize = 10;
/// An allocator keeps some of what was freed.
const MARGIN_KIB: u64 = 16 << 10;

/// What an agent has.
struct Has {
    /// The names and labels of all series in its metrics.
    series: BTreeSet<String>,
    descriptors: usize,
    threads: usize,
    memory_kib: u64,
}

impl Has {
    fn of(agent: &Agent) -> Has {
        let metrics = agent.get("/metrics").expect("metrics").1;
        let process = format!("/proc/{}", agent.id());
        let entries = |what: &str| std::fs::read_dir(format!("{process}/{what}")).expect("the agent").count();
        let status = std::fs::read_to_string(format!("{process}/status")).expect("the agent");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        Has {
            series: series(&metrics),
            descriptors: entries("fd"),
            threads: entries("task"),
            memory_kib: memory.trim().trim_end_matches(" kB").parse().expect("a number"),
        }
    }

    fn is_no_more_than(&self, before: &Has) -> bool {
        self.series.is_subset(&before.series)
            && self.threads <= before.threads
            && self.descriptors <= before.descriptors
            && self.memory_kib <= before.memory_kib + MARGIN_KIB
    }
}

fn series(metrics: &str) -> BTreeSet<String> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect()
}

impl Display for Has {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Has { series, descriptors, threads, memory_kib } = self;
        let count = series.len();
        write!(f, "{count} series, {descriptors} descriptors, {threads} threads, {memory_kib} KiB")
    }
}

/// So many pods at once: they come, want more than the card has together, and go.
fn batch(node: &Node, api: &Api, cgroups: &Cgroups, numbers: std::ops::Range<usize>) {
    let uid = |number: usize| format!("5b6f2d3c-11aa-4f0e-9d7b-{number:012}");
    let mut clients: Vec<Client> = numbers
        .clone()
        .map(|number| {
            let (uid, id) = (uid(number), format!("{number:064x}"));
            api.put(pod(&format!("job-{number}"), &uid, Some(("main", &id)), json!({})));
            let cgroup = cgroups.make(&format!("kubepods/burstable/pod{uid}/{id}")).expect("a cgroup");
            start(node, &cgroup)
        })
        .collect();
    for client in &mut clients {
        client.succeed();
    }
    numbers.for_each(|number| api.delete(&uid(number)));
}

/// A small workload that begins its life in a cgroup.
fn start(node: &Node, cgroup: &Path) -> Client {
    const SCRIPT: &str = "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"";
    let mut command = node.client("/bin/sh").with_shim();
    command.args(["-c", SCRIPT, "sh"]).arg(cgroup).arg(node.artifacts().workload());
    command.args(["--json", "--bytes", "4M", "--buffers", "2", "--iterations", "2"]);
    Client::start(&mut command)
}

/// Waits until the agent knows nobody.
fn wait_until_empty(agent: &Agent) {
    wait_for("the agent has no clients and names no pods", LIMIT, || {
        let empty = agent.state()["clients"] == json!([]);
        (empty && !agent.get("/metrics").ok()?.1.contains("pod=\"job-")).then_some(())
    });
}

#[test]
fn two_hundred_pods_that_come_and_go_leave_nothing_in_the_agent() {
    let _alone = crate::alone();
    let cgroups = Cgroups::new();
    let Some(pods) = cgroups.make("kubepods") else {
        eprintln!(
            "SKIPPED: pods that come and go were not tried: no cgroup can be made here; run as root with a writable \
             /sys/fs/cgroup"
        );
        return;
    };
    let runtime = Runtime::new().expect("a runtime");
    let listen = async { Api::start(TcpListener::bind("127.0.0.1:0").await.expect("a free port")) };
    let api = runtime.block_on(listen);
    let node = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "64M")
        .env("NVSHARE_SIM_CONTEXT_BYTES", "1M")
        .env("NVSHARE_EXTENT_BYTES", "2M")
        .build();
    let api_url = api.url().to_string();
    let mut flags = vec!["--kube-api", &api_url, "--node-name", NODE, "--reserve", "2M", "--capacity", "32M"];
    flags.extend(["--lease-floor", "20ms", "--lease-ceiling", "20ms"]);
    // Whatever else uses a CUDA library on this machine is not its node. The first version has no such thing.
    if pods.join("cgroup.controllers").exists() {
        flags.extend(["--node-cgroup", pods.to_str().expect("a path in UTF-8")]);
    }
    let agent = node.agent(flags);

    // What the first ones bring stays: the driver's library is known, figures have begun.
    batch(&node, &api, &cgroups, 0..AT_A_TIME);
    wait_until_empty(&agent);
    let before = Has::of(&agent);
    for first in (AT_A_TIME..AT_A_TIME + PODS).step_by(AT_A_TIME) {
        batch(&node, &api, &cgroups, first..first + AT_A_TIME);
    }
    wait_until_empty(&agent);
    let state = agent.state();
    assert_eq!(state["sessions"]["opened"], PODS + AT_A_TIME, "not every pod was a client");
    let processes = state["processes"].as_array().expect("observed processes");
    let left: Vec<&Value> =
        processes.iter().filter(|process| process["owner"]["namespace"] == "ml").collect();
    assert_eq!(left, Vec::<&Value>::new(), "processes that ended are remembered");
    // A pool of threads keeps idle ones for 10 s.
    let end = std::time::Instant::now() + LIMIT;
    let after = loop {
        let now = Has::of(&agent);
        if now.is_no_more_than(&before) || std::time::Instant::now() > end {
            break now;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let new: Vec<&String> = after.series.difference(&before.series).collect();
    eprintln!("before: {before}; after {PODS} pods: {after}, of the series are new: {new:?}");
    assert!(after.is_no_more_than(&before), "something is left of {PODS} pods");
    assert_eq!(node.violations(), Vec::<String>::new());
}
