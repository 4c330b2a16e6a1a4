//! Of each label whether its values are known. Those that are stand on the page from the start: then the first time that something
//! happens is an increase, and what never happened is a zero.

use nvshare_agent_core::order::Priority;

use super::*;

/// The values that a label can have.
enum Values {
    /// Any: names of what comes and goes, or texts that others choose. Its series come with what it names.
    Any,
    /// These.
    Known(Vec<&'static str>),
}

fn values(series: &str, label: &str) -> Values {
    let known = |values: &[&'static str]| Values::Known(values.to_vec());
    match (label, series) {
        (
            "client" | "namespace" | "pod" | "container" | "process" | "shim" | "gpu" | "UUID" | "product" | "release"
            | "protocol",
            _,
        )
        // What cannot be swapped, in the words of the shim.
        | ("reason", "nvshare_device_unswappable_bytes" | "nvshare_client_unswappable_bytes") => Values::Any,
        ("part", _) => known(&Part::ALL.map(Part::name)),
        ("activity", _) => known(&Activity::ALL.map(Activity::name)),
        ("priority", _) => known(&[Priority::High, Priority::Normal, Priority::Low].map(Priority::name)),
        ("direction", _) => known(&["out", "in"]),
        ("why", "nvshare_clients_hindered") => known(&["never_runs", "latecomer"]),
        ("state", "nvshare_host_arena_bytes") => known(&["handed_out", "being_made"]),
        ("state", "nvshare_uprobe_files") => known(&["attached", "failed"]),
        ("state", "nvshare_uprobe_functions") => known(&["attached", "refused"]),
        ("reason", "nvshare_events_lost_total") => known(&Loss::ALL.map(Loss::name)),
        ("reason", "nvshare_uvm_unattributed_total") => known(&["unknown", "refused", "unreadable"]),
        ("reason", "nvshare_sessions_refused_total") => known(&Refusal::ALL.map(Refusal::label)),
        ("reason", "nvshare_sessions_closed_total") => known(&End::LABELS),
        ("seen_by", _) => known(&["shim", "uprobes"]),
        ("made_by", _) => known(&["application", "engine"]),
        ("call", _) => known(&Call::ALL.map(Call::name)),
        _ => panic!("of {series} nobody says whether the values of `{label}` are known"),
    }
}

/// The values that a label has in the samples of a series.
fn exported(text: &str, series: &str, label: &str) -> BTreeSet<String> {
    let samples = samples(text);
    let of_it =
        ["", "_bucket"].iter().filter_map(|suffix| samples.get(&format!("{series}{suffix}"))).flatten();
    let value = |labels: &str| {
        let labels = format!(",{labels}");
        let (_, rest) = labels.split_once(&format!(",{label}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    of_it.filter_map(|(labels, _)| value(labels)).collect()
}

#[test]
fn whatever_can_happen_has_its_zero_before_it_happens_first() {
    let mut fresh = State::default();
    // Otherwise these have no figure, which is not a zero.
    fresh.observer.uvm.observed = true;
    let text = scrape(fresh);
    for series in Series::TABLE {
        let of_labels: Vec<Values> = series.labels.iter().map(|label| values(series.name, label)).collect();
        if of_labels.iter().any(|values| matches!(values, Values::Any)) {
            continue;
        }
        for (label, values) in series.labels.iter().zip(of_labels) {
            let Values::Known(values) = values else { continue };
            let values: BTreeSet<String> = values.into_iter().map(str::to_owned).collect();
            assert_eq!(exported(&text, series.name, label), values, "{}, {label}", series.name);
        }
    }
}

#[test]
fn no_label_has_a_value_that_is_not_known() {
    let text = scrape(full());
    for series in Series::TABLE {
        for label in series.labels {
            let exported = exported(&text, series.name, label);
            assert!(!exported.is_empty(), "{}, {label}: nothing was tried", series.name);
            if let Values::Known(values) = values(series.name, label) {
                let other = exported.iter().find(|value| !values.contains(&value.as_str()));
                assert_eq!(other, None, "{}, {label}", series.name);
            }
        }
    }
}
