//! What one container takes of the observer, and how the agent says that it misses something.

use std::path::PathBuf;
use std::time::Duration;

use nvshare_agent::observer::{Options, Part};
use nvshare_agent_core::observation::{Seen, What};
use nvshare_common::event::SLOTS_OF_GROUP;
use nvshare_common::probe::Call;
use nvshare_testbed::{Cgroups, Node, wait_for};

use crate::client::Client;
use crate::fake::Fake;
use crate::seen::{last_counts, last_health, named, observe, observe_with, of};

/// No wait is longer.
const LIMIT: Duration = Duration::from_secs(40);

/// A cgroup of the second version below the test's own; `None`, said loudly, where there is none.
fn cgroup(cgroups: &Cgroups, name: &str) -> Option<PathBuf> {
    let made = cgroups.make(name).filter(|path| path.join("cgroup.controllers").exists());
    if made.is_none() {
        eprintln!("SKIPPED: no cgroup of the second version can be made: nothing about quotas was tested");
    }
    made
}

fn enter(cgroup: &std::path::Path, client: &Client) {
    std::fs::write(cgroup.join("cgroup.procs"), client.pid().to_string()).unwrap();
}

#[test]
fn a_container_with_more_processes_than_its_quota_leaves_those_of_others_observed() {
    let beyond = 60;
    let fake = Fake::new();
    let cgroups = Cgroups::new();
    // Two that are quiet: by chance one of them may share the place of the hog, of 512.
    let Some([hog, one, other]) = ["hog", "one", "other"]
        .map(|name| cgroup(&cgroups, name))
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .map(|made| <[PathBuf; 3]>::try_from(made).unwrap())
    else {
        return;
    };
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut many = Client::start(&fake.path());
    enter(&hog, &many);
    many.run(&format!("hold cuMemUnmap {}", SLOTS_OF_GROUP + beyond));
    seen.wait("the quota is used up", |told| {
        told.iter()
            .rev()
            .find_map(|seen| match seen {
                Seen::Observer(health) => Some(health.unattributed == beyond),
                Seen::Process(_) => None,
            })
            .filter(|all| *all)
    });
    let quiet = [one, other].map(|cgroup| {
        let mut client = Client::start(&fake.path());
        enter(&cgroup, &client);
        client.run("call cuMemMap 7 1");
        let pid = client.pid();
        client.end();
        pid
    });
    let observed = seen.wait("the end of a quiet one", |told| {
        quiet.into_iter().find(|pid| of(told, *pid).any(|what| *what == What::Exited))
    });
    assert_eq!(named(&seen.counts_of_dead(observed).application), [("map", 7)].into());
    many.end();
}

#[test]
fn the_records_of_a_quiet_container_arrive_beside_a_flood_of_another() {
    const QUIET: usize = 200;
    let fake = Fake::new();
    let cgroups = Cgroups::new();
    let (Some(hog), Some(quiet)) = (cgroup(&cgroups, "hog"), cgroup(&cgroups, "quiet")) else { return };
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut flood = Client::start(&fake.path());
    enter(&hog, &flood);
    let mut client = Client::start(&fake.path());
    enter(&quiet, &client);
    let (pid, flooding) = (client.pid(), flood.pid());
    std::thread::scope(|scope| {
        let flood = scope.spawn(move || {
            flood.run("call cuMemUnmap 400000 2");
            flood.end();
        });
        seen.wait("the flood is throttled", |told| {
            of(told, flooding).any(|what| matches!(what, What::Unmapped(_))).then_some(())
        });
        for _ in 0..20 {
            client.run(&format!("call cuMemUnmap {} 1", QUIET / 20));
            std::thread::sleep(Duration::from_millis(20));
        }
        client.end();
        flood.join().unwrap();
    });
    seen.counts_of_dead(pid);
    let flooded = seen.counts_of_dead(flooding);
    assert_eq!(flooded.application[Call::Unmap as usize], 800_000);
    let told = seen.stop();
    let records = |pid| of(&told, pid).filter(|what| matches!(what, What::Unmapped(_))).count();
    assert_eq!(records(pid), QUIET, "beside {} of the flood", records(flooding));
    assert!(records(flooding) < 800_000, "it was no flood");
}

#[test]
fn an_agent_that_is_told_which_processes_are_its_node_observes_these_alone() {
    let (ours, others) = (Fake::new(), Fake::new());
    let cgroups = Cgroups::new();
    let (Some(node), Some(stranger)) = (cgroup(&cgroups, "node"), cgroup(&cgroups, "stranger")) else {
        return;
    };
    let Some(pod) = cgroup(&cgroups, "node/pod") else { return };
    let part = Part::at(node.to_str().unwrap()).unwrap();
    let Some(seen) = observe_with(|object| Options { part: Some(part), ..Options::new(object) }) else {
        return;
    };
    // A process has its cgroup before it has its driver, as in a container.
    let [mut in_pod, mut beside, mut elsewhere] = [(&pod, &ours), (&stranger, &ours), (&stranger, &others)]
        .map(|(cgroup, fake)| {
            let mut client = Client::start(&fake.path());
            enter(cgroup, &client);
            client.run("exec");
            client
        });
    let path = ours.path().display().to_string();
    seen.wait("the attachment", |told| {
        last_health(told)?.attachments.iter().any(|at| at.path.ends_with(&path)).then_some(())
    });
    for client in [&mut in_pod, &mut beside, &mut elsewhere] {
        client.run("call cuMemMap 7 1");
    }
    seen.wait_for_count(in_pod.pid(), Call::Map, 7);
    let health = last_health(&seen.all()).unwrap().clone();
    assert_eq!(health.attachments.len(), 1, "{:?}", health.attachments);
    let strangers = [beside.pid(), elsewhere.pid()];
    for client in [in_pod, beside, elsewhere] {
        client.end();
    }
    let told = seen.stop();
    assert!(strangers.iter().all(|pid| last_counts(&told, *pid).is_none()));
    assert_eq!(last_health(&told).unwrap().unattributed, 0, "what is not observed is not missed");
}

#[test]
fn that_the_observer_misses_calls_is_said_where_readiness_is_asked_and_taken_back() {
    let node = Node::builder().alone().build();
    // Says so where the kernel does not let us.
    if observe(&[&node.libcuda()]).is_none() {
        return;
    }
    let agent = node.agent(["--reserve", "2M"]);
    wait_for("the driver is observed", LIMIT, || {
        let state = agent.try_state().ok()?;
        (!state["observer"]["attachments"].as_array()?.is_empty()).then_some(())
    });
    let missed = || {
        let said = agent.get("/readyz").ok()?.1;
        Some(said.contains("misses what is called") && said.contains("too many of one process or container"))
    };
    assert_eq!(missed(), Some(false));
    let mut client = Client::prepared(&node.libcuda(), |command| node.enter(command));
    client.run("call cuMemUnmap 100000 2");
    wait_for("it is said", LIMIT, || missed()?.then_some(()));
    client.end();
    wait_for("it is taken back", LIMIT, || (!missed()?).then_some(()));
}
