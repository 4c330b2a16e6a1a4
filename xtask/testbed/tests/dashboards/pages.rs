//! What lies in `dashboards/` and `docs/`, read for the tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The dashboards, by the names of their files.
pub(crate) const DASHBOARDS: [&str; 2] = ["nvshare-node", "nvshare-fleet"];

/// A file of the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// Its text.
pub(crate) fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"))
}

/// A dashboard.
pub(crate) fn dashboard(name: &str) -> Value {
    let file = format!("dashboards/{name}.json");
    serde_json::from_str(&text(&file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Its panels, rows left out.
pub(crate) fn panels(dashboard: &Value) -> Vec<Value> {
    let panels = dashboard["panels"].as_array().expect("panels");
    panels.iter().filter(|panel| panel["type"] != "row").cloned().collect()
}

/// The expressions of a panel.
pub(crate) fn expressions(panel: &Value) -> Vec<String> {
    let targets = panel["targets"].as_array().expect("targets");
    targets.iter().map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
}

/// The questions that fill the variables of a dashboard: an expression and the label whose values are offered.
pub(crate) fn variables(dashboard: &Value) -> Vec<(String, String)> {
    let list = dashboard["templating"]["list"].as_array().expect("variables");
    let questions = list.iter().filter(|variable| variable["type"] == "query");
    let parts = questions.map(|variable| {
        let question = variable["query"].as_str().expect("a question");
        let inner = question.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (expression, label) =
            inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(EXPR, LABEL)");
        (expression.to_owned(), label.to_owned())
    });
    parts.collect()
}

/// The names of the table of series in the agent's sources.
pub(crate) fn series() -> BTreeSet<String> {
    let source = text("nvshare-agent/src/metrics/series.rs");
    let words: Vec<&str> = source.split_whitespace().collect();
    let entries = words.windows(2).filter(|pair| matches!(pair[0], "GAUGE" | "COUNTER" | "HISTOGRAM"));
    let literals = entries.filter_map(|pair| pair[1].strip_prefix('"')?.strip_suffix('"'));
    let series: BTreeSet<String> = literals.map(|name| format!("nvshare_{name}")).collect();
    assert!(series.len() > 50, "the table of series looks different: {series:?}");
    series
}

/// The labels in that table.
pub(crate) fn labels() -> BTreeSet<String> {
    let source = text("nvshare-agent/src/metrics/series.rs");
    let table = source
        .lines()
        .filter(|line| [" GAUGE ", " COUNTER ", " HISTOGRAM "].iter().any(|kind| line.contains(kind)));
    let lists = table.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()));
    lists
        .flat_map(|list| list.split(", ").map(|label| label.trim_matches('"').to_owned()).collect::<Vec<_>>())
        .collect()
}

/// Where labels are named: in expressions, legends and annotations.
const LABELS_BETWEEN: [(&str, &str); 6] = [
    (" by (", ")"),
    (" without (", ")"),
    (" on (", ")"),
    (" group_left (", ")"),
    ("{{", "}}"),
    ("$labels.", " "),
];

/// The labels that a text names.
pub(crate) fn labels_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (before, after) in LABELS_BETWEEN {
        let lists = text.split(before).skip(1).filter_map(|rest| rest.split(after).next());
        // What else stands in the braces of an annotation has spaces around it.
        let labels =
            lists.flat_map(|list| list.split(", ")).filter(|label| !label.is_empty() && !label.contains(' '));
        found.extend(labels.map(str::to_owned));
    }
    found
}

/// The series that a text names, without what Prometheus appends to the names of histograms.
pub(crate) fn series_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    let names = words.filter(|word| word.starts_with("nvshare_"));
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    names.map(base).collect()
}

/// The series that an expression selects, each with its matchers.
pub(crate) fn selectors(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        rest = &rest[end..];
        if name.starts_with("nvshare_") || name.contains(":nvshare_") || name == "up" {
            let matchers =
                rest.starts_with('{').then(|| rest.find('}')).flatten().map_or("", |end| &rest[..=end]);
            found.insert(format!("{name}{matchers}"));
        }
    }
    found
}

/// The values of a key in a YAML file whose every use stands on a line of its own: ours do.
pub(crate) fn yaml_values(yaml: &str, key: &str) -> Vec<String> {
    let lines = yaml.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ").map(str::to_owned)).collect()
}
