//! The files and recipes by which Grafana and Prometheus pick up the dashboards and the agents: that they agree with what
//! they are about and with one another.

use std::fs;

use serde_json::Value;

use crate::pages::{DASHBOARDS, dashboard, path, text};
use crate::prometheus::{self, promtool};

const README: &str = "dashboards/provisioning/README.md";

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&text(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The configurations of Prometheus in the document.
fn recipes() -> Vec<String> {
    let text = text(README);
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    // One shows a job alone.
    let head = |block: &str| if block.starts_with("  - ") { "scrape_configs:\n" } else { "" };
    blocks.map(|block| format!("{}{block}", head(block))).collect()
}

#[test]
fn grafana_finds_the_dashboards_where_the_document_puts_them() {
    let provisioned = yaml("dashboards/provisioning/dashboards/nvshare.yaml");
    assert_eq!(provisioned["apiVersion"], 1);
    let [provider] = provisioned["providers"].as_array().expect("providers").as_slice() else {
        panic!("{provisioned}")
    };
    assert_eq!(provider["type"], "file");
    let place = provider["options"]["path"].as_str().expect("a path");
    let files = DASHBOARDS.map(|name| format!("`{name}.json`")).join(", ");
    let row = format!("| {files} | `{place}/` |");
    assert!(text(README).contains(&row), "{README} does not say {row}");
    let json = fs::read_dir(path("dashboards")).expect("dashboards").filter(|entry| {
        entry.as_ref().expect("a file").path().extension().is_some_and(|extension| extension == "json")
    });
    assert_eq!(json.count(), DASHBOARDS.len(), "a dashboard is not installed");
}

#[test]
fn the_data_source_is_one_that_the_dashboards_offer() {
    let provisioned = yaml("dashboards/provisioning/datasources/nvshare.yaml");
    assert_eq!(provisioned["apiVersion"], 1);
    let [source] = provisioned["datasources"].as_array().expect("data sources").as_slice() else {
        panic!("{provisioned}")
    };
    assert_eq!(source["uid"], "nvshare-prometheus");
    assert_eq!(source["isDefault"], true, "a dashboard that is opened shows the default");
    for name in DASHBOARDS {
        let variable = &dashboard(name)["templating"]["list"][0];
        assert_eq!(
            (&variable["type"], &variable["query"]),
            (&"datasource".into(), &source["type"]),
            "{name}"
        );
    }
}

#[test]
fn everybody_scrapes_as_often_as_grafana_believes_and_calls_a_node_instance() {
    let source = yaml("dashboards/provisioning/datasources/nvshare.yaml");
    let every = &source["datasources"][0]["jsonData"]["timeInterval"];
    let monitor = yaml("deploy/prometheus-operator/pod-monitor.yaml");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(&endpoint["interval"], every);
    let recipes = recipes();
    let jobs: Vec<Value> = recipes
        .iter()
        .map(|text| serde_saphyr::from_str::<Value>(text).expect("YAML")["scrape_configs"][0].clone())
        .collect();
    let [in_a_cluster, by_name] = jobs.as_slice() else { panic!("{jobs:?}") };
    for job in [in_a_cluster, by_name] {
        assert_eq!(&job["scrape_interval"], every, "{job}");
        assert_eq!(job["honor_labels"], endpoint["honorLabels"], "{job}");
        assert!(job["job_name"].as_str().expect("a name").contains("nvshare"), "alerts look for it");
    }
    let relabel = &in_a_cluster["relabel_configs"][1];
    let same = &endpoint["relabelings"][0];
    assert_eq!(relabel["source_labels"], same["sourceLabels"]);
    assert_eq!((&relabel["target_label"], &same["targetLabel"]), (&"instance".into(), &"instance".into()));
}

#[test]
fn prometheus_accepts_the_recipes() {
    if !prometheus::is_installed("prometheus_accepts_the_recipes") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    for recipe in recipes() {
        // Debian's Prometheus is built without Kubernetes: the rest of that job is looked at.
        let lines = recipe.lines().filter(|line| !line.trim_start().starts_with("kubernetes_sd_configs: "));
        let lines: Vec<&str> = lines.collect();
        fs::write(directory.path().join("prometheus.yml"), lines.join("\n")).expect("a file");
        promtool(&["check", "config", "--syntax-only", "prometheus.yml"], directory.path(), "");
    }
}
