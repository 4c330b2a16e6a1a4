//! A card that falls off the bus, by what the conductor publishes: the kubelet hears that its shares are unhealthy.

use std::sync::Arc;

use nvshare_agent::health::{Health, Part};
use nvshare_agent::plugin;
use nvshare_agent::snapshot::{Device, State};
use nvshare_testbed::kubernetes::Kubelet;
use tempfile::TempDir;
use tokio::sync::watch;

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

/// The plugin's options by its flags, all others as they are by default.
fn options(flags: &[String]) -> plugin::Options {
    use clap::Parser;
    let line = ["nvshare-agent".to_owned()].into_iter().chain(flags.iter().cloned());
    nvshare_agent::config::Cli::try_parse_from(line).unwrap().config.plugin
}
