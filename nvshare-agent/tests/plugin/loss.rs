//! A card that falls off the bus, by what the conductor publishes and by what NVML says to a running agent: the kubelet
//! hears that its shares are unhealthy, and the other card goes on.

use std::sync::Arc;
use std::time::Duration;

use nvshare_agent::health::{Health, Part};
use nvshare_agent::plugin;
use nvshare_agent_core::snapshot::{Device, State};
use nvshare_sim_card::{Bus, Cards, Config};
use nvshare_testbed::kubernetes::Kubelet;
use nvshare_testbed::{Agent, Client, wait_for};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::node::KubernetesNode;

fn published(cards: &[(&str, f64)]) -> Arc<State> {
    let device = |&(uuid, age): &(&str, f64)| Device {
        uuid: uuid.to_owned(),
        reading_age_seconds: age,
        ..Device::default()
    };
    Arc::new(State { devices: cards.iter().map(device).collect(), ..State::default() })
}

#[test]
fn shares_of_a_card_that_is_lost_or_silent_turn_unhealthy_and_come_back() {
    let home = TempDir::with_prefix("nvshare-plugin-").unwrap();
    let library = home.path().join("library");
    std::fs::create_dir(&library).unwrap();
    std::fs::write(library.join("libnvshare.so"), "").unwrap();
    let kubelet = Kubelet::start(&home.path().join("kubelet"));
    let options = options(&[
        format!("--kubelet-dir={}", home.path().join("kubelet").display()),
        format!("--library-dir={}", library.display()),
        "--device-plugin=on".into(),
        "--shares=2".into(),
    ]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (publish, state) = watch::channel(published(&[]));
    let health = Health::new();
    runtime.spawn(plugin::run(options, home.path().join("run/agent.sock"), state, health.clone()));
    assert_eq!(kubelet.registrations(), 0, "nothing is offered before there is a card");

    publish.send_replace(published(&[("GPU-a", 0.1), ("GPU-b", 0.1)]));
    kubelet.devices(4, 4);
    publish.send_replace(published(&[("GPU-a", 0.1)]));
    let devices = kubelet.devices(4, 2);
    assert!(devices.iter().all(|device| (device.health == "Healthy") == device.id.starts_with("GPU-a")));
    publish.send_replace(published(&[("GPU-a", 0.1), ("GPU-b", 0.1)]));
    kubelet.devices(4, 4);
    publish.send_replace(published(&[("GPU-a", 60.0), ("GPU-b", 0.1)]));
    let devices = kubelet.devices(4, 2);
    assert!(devices.iter().all(|device| (device.health == "Healthy") == device.id.starts_with("GPU-b")));
    let plugin_works = health.readiness().missing.iter().all(|missing| missing.part != Part::Plugin);
    assert!(plugin_works, "the plugin itself is well: {:?}", health.readiness());
}

/// The card with this number, by its UUID.
fn uuid(agent: &Agent, index: u64) -> String {
    let state = agent.state();
    let mut devices = state["devices"].as_array().expect("devices").iter();
    let device = devices.find(|device| device["index"] == index).expect("the card");
    device["uuid"].as_str().expect("a UUID").to_owned()
}

fn switches(agent: &Agent) -> u64 {
    agent.state()["switches"]["count"].as_u64().expect("a count")
}

#[test]
fn a_card_that_falls_off_the_bus_is_warned_of_once_and_the_other_goes_on_until_it_is_back() {
    let node = KubernetesNode::new(2);
    node.install();
    let kubelet = Kubelet::start(&node.kubelet());
    let agent = node.agent(&[]);
    kubelet.devices(6, 6);
    let (stays, falls) = (uuid(&agent, 0), uuid(&agent, 1));
    // Together they need more than the first card has.
    let mut clients = [1, 2].map(|seed| {
        let flags = format!("--bytes 64M --buffers 4 --seconds 30 --seed {seed}");
        Client::start(&mut node.node.workload(&flags).with_shim())
    });
    wait_for("they take turns", Duration::from_mins(1), || (switches(&agent) >= 2).then_some(()));
    let bus = Cards::open(node.node.card().expect("simulated cards"), &Config::default()).unwrap();

    bus.set_bus(1, Bus::Lost).unwrap();
    let unhealthy = kubelet.devices(6, 3);
    assert!(unhealthy.iter().all(|device| (device.health == "Healthy") == device.id.starts_with(&stays)));
    let before = switches(&agent);
    // The driver was reset and started without it.
    bus.set_bus(1, Bus::Unlisted).unwrap();
    wait_for("NVML lists one card", Duration::from_mins(1), || {
        (agent.state()["devices"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    wait_for("turns are taken on the other card", Duration::from_mins(1), || {
        (switches(&agent) >= before + 2).then_some(())
    });
    kubelet.devices(6, 3);
    assert_eq!(agent.get("/readyz").unwrap().0, 200, "an agent with a card is ready");

    bus.set_bus(1, Bus::There).unwrap();
    kubelet.devices(6, 6);
    for client in &mut clients {
        client.succeed();
    }
    let log = agent.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "one warning:\n{log}");
    for part in ["a card is lost", &falls, "gpu=1", "Xid", "nvidia-smi --gpu-reset -i 1"] {
        assert!(warnings[0].contains(part), "{part} is not in {}", warnings[0]);
    }
    assert_eq!(log.matches("a card that was lost is back").count(), 1, "{log}");
    assert_eq!(node.node.violations(), Vec::<String>::new());
}

/// The plugin's options by its flags, all others as they are by default.
fn options(flags: &[String]) -> plugin::Options {
    use clap::Parser;
    let line = ["nvshare-agent".to_owned()].into_iter().chain(flags.iter().cloned());
    nvshare_agent::config::Cli::try_parse_from(line).unwrap().config.plugin
}
