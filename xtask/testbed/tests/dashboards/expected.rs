//! What a demo on a simulated card may leave without data, each with the reason. A test needs no data of these.

/// Labels of what Prometheus makes by itself.
pub(crate) const OTHER_LABELS: [&str; 6] = ["instance", "job", "le", "alertname", "alertstate", "severity"];

/// Parts of expressions, and why nothing may come of an expression that has them.
pub(crate) const EMPTY: &[(&str, &str)] = &[
    ("unswappable_bytes", "the workload's memory can all be moved"),
    ("nvshare_foreign_pod_allocated_bytes", "every program has the library"),
    ("activity=~\"disconnected", "nobody is gone"),
    ("priority=\"low\"", "everybody is of normal priority"),
    ("nvshare_uvm_", "managed memory is observed in NVIDIA's kernel module, which is not loaded here"),
    ("ALERTS", "no alert is near on a node that is well"),
];

/// Whether the expression may come out empty.
pub(crate) fn may_be_empty(expression: &str) -> bool {
    EMPTY.iter().any(|(part, _)| expression.contains(part))
}
