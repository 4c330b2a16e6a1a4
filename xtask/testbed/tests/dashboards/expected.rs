//! What a demo on a simulated card may leave without data, each with the reason. A test needs no data of these.

use std::collections::BTreeSet;

use serde_json::Value;

/// Series that other parts of the agent are about to export. While one is not in the table of series, nothing is
/// demanded of the expressions that name it.
pub(crate) const AWAITED: [&str; 8] = [
    "nvshare_client_held_out",
    "nvshare_client_info",
    "nvshare_client_pinned",
    "nvshare_client_priority",
    "nvshare_client_unyielding",
    "nvshare_client_weight",
    "nvshare_link_bytes_per_second",
    "nvshare_switch_bytes_total",
];

/// Labels of what Prometheus makes by itself, and those that other parts of the agent are about to give their series.
pub(crate) const OTHER_LABELS: [&str; 13] = [
    "instance",
    "job",
    "le",
    "alertname",
    "alertstate",
    "severity", //
    "namespace",
    "pod",
    "container",
    "UUID",
    "shim",
    "priority",
    "product",
];

/// Commands that the runbook names and that other parts of the agent are about to have.
pub(crate) const AWAITED_COMMANDS: [&str; 4] = ["pin", "probes", "swap", "unpin"];

/// Parts of expressions, and why nothing may come of an expression that has them.
pub(crate) const EMPTY: [(&str, &str); 7] = [
    ("nvshare_link_bytes_per_second", "the agent exports it only where it knows the link of the card"),
    ("unswappable_bytes", "the workload's memory can all be moved"),
    ("nvshare_sessions_refused_total", "nobody is refused"),
    ("nvshare_sessions_closed_total", "nobody has left yet"),
    ("activity=~\"disconnected", "nobody is gone"),
    ("priority=\"low\"", "everybody is of normal priority"),
    ("ALERTS", "no alert is near on a node that is well"),
];

/// The names of [`AWAITED`] that are not exported yet, and of the recorded series that are made from them.
pub(crate) fn awaited(series: &BTreeSet<String>, rules: &[Value]) -> BTreeSet<String> {
    let mut awaited: BTreeSet<String> =
        AWAITED.iter().map(|name| (*name).to_owned()).filter(|name| !series.contains(name)).collect();
    // Rules come in the order in which they build on one another.
    for rule in rules.iter().filter(|rule| rule["type"] == "recording") {
        let (name, expression) = (rule["name"].as_str(), rule["query"].as_str());
        if awaited.iter().any(|series| expression.is_some_and(|expression| expression.contains(series))) {
            awaited.extend(name.map(str::to_owned));
        }
    }
    awaited
}

/// Whether the expression may come out empty.
pub(crate) fn may_be_empty(expression: &str, awaited: &BTreeSet<String>) -> bool {
    awaited.iter().any(|name| expression.contains(name))
        || EMPTY.iter().any(|(part, _)| expression.contains(part))
}
