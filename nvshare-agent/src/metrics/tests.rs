//! What the page of metrics has for a state.

mod values;

use std::collections::BTreeSet;

use nvshare_agent_core::observation::Attachment;
use nvshare_agent_core::snapshot::{Client, ClientDevice, Device};

use super::*;
use crate::health::Part;

const GPU: &str = "GPU-01234567-89ab-cdef-1032-547698badcfe";

fn client(number: u64) -> Client {
    let counts = Totals::named(&std::array::from_fn(|index| index as u64));
    let unswappable_reasons =
        BTreeMap::from([("array".to_owned(), Bytes(7)), ("bad\"\n".to_owned(), Bytes(1))]);
    serde_json::from_value(serde_json::json!({
        "client": number, "process": {"pid": 4_242_424, "start": 1}, "name": "python3",
        "cgroup": format!("/kubepods.slice/cri-containerd-{}.scope", "ab".repeat(32)), "shim": "0.1.0",
        "owner": {"namespace": "ml", "pod": "train-0", "container": "trainer"},
        "activity": "waiting", "waiting_seconds": 1.5, "idle_seconds": 0.0, "lease_seconds": 2.0,
        "virtual_runtime_seconds": 3.0, "stalls": 0, "notes": [], "arenas": 1, "arena_bytes": 64,
        "devices": [ClientDevice {
            uuid: GPU.to_owned(), resident: Bytes(100), uvm_faults: 3, uvm_in: Bytes(11), uvm_out: Bytes(12), unswappable_reasons,
            ..ClientDevice::default()
        }],
        "totals": Totals { application_calls: counts, engine_calls: counts,
            application_seen: counts, engine_seen: counts, copied_out: Bytes(5), ..Totals::default() },
    }))
    .unwrap()
}

fn full() -> State {
    let mut state =
        State { release: "0.1.0".to_owned(), clients: vec![client(17), client(18)], ..State::default() };
    state.devices = vec![Device {
        uuid: GPU.to_owned(),
        index: 1,
        link_bytes_per_second: Some(15 << 30),
        total: Bytes(1 << 30),
        ..Device::default()
    }];
    let other = serde_json::json!({"process": {"pid": 4_242_424, "start": 1}, "name": "miner", "measured": 0,
        "allocated": 5, "managed": 0, "inexact": false, "idle_seconds": 0.0, "seen": {}});
    state.processes.push(serde_json::from_value(other).unwrap());
    state.ended_totals.copied_out = Bytes(1000);
    state.sessions.refused.insert("version".to_owned(), 1);
    state.sessions.closed.insert("malformed".to_owned(), 1);
    state.switches.seconds.record(0.3);
    (state.observer.uvm.observed, state.observer.uvm.source) = (true, Source::Tools);
    state.observer.attachments = vec![
        Attachment { functions: 60, ..Attachment::default() },
        Attachment { problem: Some("no permission".to_owned()), ..Attachment::default() },
    ];
    state
}

fn scrape(state: State) -> String {
    let health = Health::new();
    health.missing(Part::Uprobes, &"no BTF");
    let (_sender, receiver) = watch::channel(Arc::new(state));
    Metrics::new(receiver, health).text().unwrap()
}

/// The samples by name (with the suffixes of histograms), after a strict reading of the text.
fn samples(text: &str) -> BTreeMap<String, Vec<(String, f64)>> {
    let (mut helped, mut typed) = (BTreeSet::new(), BTreeMap::new());
    let mut samples: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()) && help.ends_with('.'), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(typed.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let family = histogram.filter(|name| typed.contains_key(*name)).unwrap_or(name);
            assert!(helped.contains(family) && typed.contains_key(family), "no HELP or TYPE before {line}");
            assert!(name.starts_with("nvshare_") && !labels.contains("4242424"), "{line}");
            samples.entry(name.to_owned()).or_default().push((labels.to_owned(), value.parse().unwrap()));
        }
    }
    for (name, values) in &samples {
        let distinct: BTreeSet<_> = values.iter().map(|(labels, _)| labels).collect();
        assert_eq!(distinct.len(), values.len(), "{name} has a sample twice: {values:?}");
    }
    samples
}

#[test]
fn no_name_is_in_the_table_twice() {
    let names: BTreeSet<_> = Series::TABLE.iter().map(|series| series.name).collect();
    assert_eq!(names.len(), Series::TABLE.len());
}

#[test]
fn every_series_of_the_table_is_exported_with_help_and_type() {
    let text = scrape(full());
    samples(&text);
    for series in Series::TABLE {
        assert!(text.contains(&format!("# TYPE {} ", series.name)), "{} is never exported", series.name);
    }
}

#[test]
fn every_series_is_explained_to_those_who_make_dashboards() {
    let page = include_str!("../../../dashboards/README.md");
    for series in Series::TABLE {
        assert!(page.contains(&format!("`{}", series.name)), "dashboards/README.md lacks {}", series.name);
    }
}

#[test]
fn clients_that_cannot_run_and_those_that_came_too_late_are_counted() {
    let mut state = full();
    (state.clients[0].hindered, state.clients[1].hindered, state.clients[1].latecomer) = (true, true, true);
    let hindered = samples(&scrape(state))["nvshare_clients_hindered"].clone();
    let expected = [("never_runs", 2.0), ("latecomer", 1.0)];
    assert_eq!(hindered, expected.map(|(why, count)| (format!("why=\"{why}\"}}"), count)));
}

#[test]
fn each_way_to_lose_a_record_has_a_figure_of_its_own_also_while_it_is_zero() {
    let mut state = full();
    state.observer.losses[Loss::Throttled as usize] = 7;
    let lost = samples(&scrape(state))["nvshare_events_lost_total"].clone();
    let expected = [("full", 0.0), ("throttled", 7.0), ("unmatched", 0.0), ("unfollowed", 0.0)];
    assert_eq!(lost, expected.map(|(how, count)| (format!("reason=\"{how}\"}}"), count)));
}

#[test]
fn managed_memory_has_no_figures_where_it_is_not_observed() {
    let mut state = full();
    state.ended_totals.uvm_faults = 7;
    let observed = samples(&scrape(state.clone()));
    assert_eq!(observed["nvshare_uvm_observed"][0].1 as u64, 1);
    assert_eq!(observed["nvshare_uvm_faults_total"][0].1 as u64, 7);
    (state.observer.uvm.observed, state.observer.uvm.source) = (false, Source::None);
    let not = samples(&scrape(state));
    assert_eq!(not["nvshare_uvm_observed"][0].1 as u64, 0);
    let uvm: Vec<_> = not.keys().filter(|name| name.starts_with("nvshare_uvm")).collect();
    assert_eq!(uvm, ["nvshare_uvm_observed", "nvshare_uvm_source"]);
    assert!(not["nvshare_uvm_source"].iter().all(|(_, figure)| *figure as u64 == 0));
}

#[test]
fn what_the_driver_moved_is_told_by_direction_and_client_and_who_counted_it() {
    let mut state = full();
    (state.ended_totals.uvm_bytes, state.ended_totals.uvm_to_device) = (Bytes(30), Bytes(20));
    (state.ended_totals.uvm_cpu_faults, state.observer.uvm.followed) = (5, 2);
    let tools = samples(&scrape(state.clone()));
    let figures = |name: &str| tools[name].iter().map(|(labels, figure)| (labels.as_str(), *figure));
    let moved: Vec<_> = figures("nvshare_uvm_moved_bytes_total").collect();
    assert_eq!(moved, [("direction=\"in\"}", 20.0), ("direction=\"out\"}", 10.0)]);
    let source: Vec<_> = figures("nvshare_uvm_source").collect();
    assert_eq!(source, [("source=\"tools\"}", 1.0), ("source=\"kprobes\"}", 0.0)]);
    assert_eq!(figures("nvshare_uvm_cpu_faults_total").next(), Some(("", 5.0)));
    assert_eq!(figures("nvshare_uvm_followed_processes").next(), Some(("", 2.0)));
    let of_clients = figures("nvshare_client_uvm_bytes_total").map(|(_, figure)| figure as u64);
    assert_eq!(of_clients.sum::<u64>(), 2 * (11 + 12));
    assert_eq!(figures("nvshare_client_uvm_faults_total").count(), 2);
    state.observer.uvm.source = Source::Kprobes;
    let kprobes = samples(&scrape(state));
    assert!(!kprobes.contains_key("nvshare_uvm_cpu_faults_total"), "kprobes do not count them");
}

#[test]
fn no_series_of_a_client_is_left_when_it_is_gone() {
    let mut state = full();
    assert!(scrape(state.clone()).contains("client=\"18\""));
    state.clients.pop();
    let text = scrape(state);
    assert!(text.contains("client=\"17\"") && !text.contains("client=\"18\""), "{text}");
}

#[test]
fn what_was_ordered_for_a_client_can_be_asked_for() {
    let mut state = full();
    state.clients[0].priority = nvshare_agent_core::order::Priority::High;
    state.clients[0].weight = 2.5;
    state.clients[0].held_out = true;
    let samples = samples(&scrape(state));
    let of = |name: &str, client: &str| {
        let values = samples[name].iter().filter(|(labels, _)| labels.contains(client));
        values.map(|(_, value)| *value).collect::<Vec<_>>()
    };
    assert_eq!(of("nvshare_client_weight", "client=\"17\""), [2.5]);
    assert_eq!(of("nvshare_client_weight", "client=\"18\""), [1.0]);
    assert_eq!(of("nvshare_client_priority", "priority=\"high\""), [1.0]);
    assert_eq!(of("nvshare_client_priority", "client=\"17\""), [1.0]);
    assert_eq!(of("nvshare_client_held_out", "client=\"17\""), [1.0]);
    assert_eq!(of("nvshare_client_pinned", "client=\"17\""), [0.0]);
}

#[test]
fn what_clients_did_together_does_not_go_back_when_one_ends() {
    let mut state = full();
    let copied = |state: &State| samples(&scrape(state.clone()))["nvshare_swap_bytes_total"].clone();
    let before = copied(&state);
    assert!(before.contains(&("direction=\"out\"}".to_owned(), 1010.0)), "{before:?}");
    let ended = state.clients.pop().unwrap();
    state.ended_totals.add(&ended.totals);
    assert_eq!(copied(&state), before);
}

#[test]
fn what_clients_did_before_the_agent_is_in_no_sum() {
    let mut state = full();
    state.earlier = state.clients[0].totals.clone();
    let sum = |state: &State, series: &str| samples(&scrape(state.clone()))[series].clone();
    let copied = sum(&state, "nvshare_swap_bytes_total");
    assert!(copied.contains(&("direction=\"out\"}".to_owned(), 1005.0)), "{copied:?}");
    let calls = sum(&state, "nvshare_calls_total");
    let launch = "seen_by=\"shim\",made_by=\"application\",call=\"launch\"}".to_owned();
    assert!(calls.contains(&(launch, Call::Launch as usize as f64)), "{calls:?}");
}

#[test]
fn reasons_beyond_the_limit_are_one_series() {
    let mut state = full();
    let many = (0..1000).map(|number| (format!("reason-{number}"), Bytes(1))).collect();
    state.clients[0].devices[0].unswappable_reasons = many;
    state.clients.pop();
    let samples = samples(&scrape(state));
    let unswappable = &samples["nvshare_client_unswappable_bytes"];
    assert_eq!(unswappable.len(), REASONS + 1);
    let sum: f64 = unswappable.iter().map(|(_, amount)| amount).sum();
    assert_eq!(sum as u64, 1000);
}

#[test]
fn labels_join_with_those_of_other_exporters() {
    let samples = samples(&scrape(full()));
    let device = format!("gpu=\"1\",UUID=\"{GPU}\"");
    assert_eq!(samples["nvshare_device_memory_bytes"][0].0, format!("{device}}}"));
    let client = "client=\"17\",namespace=\"ml\",pod=\"train-0\",container=\"trainer\",process=\"python3\"";
    assert_eq!(samples["nvshare_client_waiting_seconds"][0].0, format!("{client}}}"));
    assert_eq!(samples["nvshare_client_resident_bytes"][0], (format!("{client},{device}}}"), 100.0));
    assert_eq!(samples["nvshare_client_info"][0].0, format!("{client},shim=\"0.1.0\"}}"));
}

#[test]
fn a_device_that_nvml_does_not_list_any_more_keeps_its_name_and_loses_its_number() {
    let mut state = full();
    state.devices.clear();
    let resident = &samples(&scrape(state))["nvshare_client_resident_bytes"];
    assert!(resident[0].0.contains(&format!("gpu=\"\",UUID=\"{GPU}\"")), "{resident:?}");
}

#[test]
fn clients_that_live_on_without_a_session_cannot_add_series_without_bound() {
    let mut state = full();
    state.clients = (0..CLIENTS as u64 + 10).map(client).collect();
    for client in &mut state.clients {
        (client.devices, client.totals) = (Vec::new(), Totals::default());
    }
    let samples = samples(&scrape(state));
    assert_eq!(samples["nvshare_client_info"].len(), CLIENTS);
    let waiting = ("activity=\"waiting\"}".to_owned(), (CLIENTS + 10) as f64);
    assert!(samples["nvshare_clients"].contains(&waiting), "all are counted together");
}
