//! The dashboards, the alerts and the runbook: that they are whole and agree with what the agent exports, that what they
//! tell to type can be typed, and that a Prometheus which scrapes a running node finds data for every expression.

mod commands;
mod expected;
mod live;
mod pages;
mod prometheus;
mod provisioning;

use std::collections::BTreeSet;
use std::process::Command;

use nvshare_testbed::Artifacts;
use pages::{DASHBOARDS, dashboard, expressions, panels, path, text};
use prometheus::promtool;

const RULES: &str = "dashboards/alerts.yaml";
const RUNBOOK: &str = "docs/runbook.md";

#[test]
fn every_dashboard_has_an_address_of_its_own_and_the_variables() {
    let boards = DASHBOARDS.map(dashboard);
    for (board, name) in boards.iter().zip(DASHBOARDS) {
        assert_eq!(board["uid"], name, "links and bookmarks use it");
        assert!(board["schemaVersion"].as_u64() >= Some(38), "{name}: Grafana 10 writes 38");
        let list = board["templating"]["list"].as_array().expect("variables");
        let names: Vec<&str> = list.iter().filter_map(|variable| variable["name"].as_str()).collect();
        assert_eq!(names, ["datasource", "node", "gpu"], "{name}");
    }
    assert_ne!(boards[0]["title"], boards[1]["title"]);
}

#[test]
fn every_panel_says_what_it_shows_and_what_to_do_when_it_looks_bad() {
    for name in DASHBOARDS {
        let board = dashboard(name);
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().expect("panels") {
            assert!(ids.insert(panel["id"].as_u64()), "{name}: two panels have the id {}", panel["id"]);
        }
        for panel in panels(&board) {
            let title = panel["title"].as_str().expect("a title");
            let description = panel["description"].as_str().unwrap_or_default();
            let says = description.contains("Bad: ") || description.contains("Empty is good");
            assert!(description.len() > 60 && says, "{name}, {title}: {description}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}, {title}");
            assert!(!expressions(&panel).is_empty(), "{name}, {title} has no expression");
        }
    }
}

#[test]
fn panels_lie_on_the_grid_and_not_on_one_another() {
    for name in DASHBOARDS {
        let mut taken = BTreeSet::new();
        for panel in dashboard(name)["panels"].as_array().expect("panels") {
            let place = |key: &str| panel["gridPos"][key].as_u64().expect("a place on the grid");
            assert!(place("x") + place("w") <= 24, "{name}: {} is too wide", panel["title"]);
            for cell in (0..place("w") * place("h")).map(|cell| (cell % place("w"), cell / place("w"))) {
                let free = taken.insert((place("x") + cell.0, place("y") + cell.1));
                assert!(free, "{name}: {} lies on another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn every_series_that_is_named_exists() {
    let series = pages::series();
    let recorded = pages::yaml_values(&text(RULES), "record");
    let files = DASHBOARDS.map(|name| format!("dashboards/{name}.json"));
    let others = [RULES, "dashboards/alerts_test.yaml", "dashboards/README.md", RUNBOOK].map(str::to_owned);
    for file in files.iter().chain(&others) {
        let text = text(file);
        for name in pages::series_in(&text) {
            let known = series.contains(&name);
            assert!(known, "{file} names {name}, which the agent does not export");
        }
        for name in
            pages::selectors(&text).iter().map(|selector| selector.split('{').next().unwrap_or_default())
        {
            let known = !name.contains(":nvshare_") || recorded.iter().any(|record| record == name);
            assert!(known, "{file} names {name}, which {RULES} does not record");
        }
    }
}

#[test]
fn every_label_that_is_named_exists() {
    let mut labels = pages::labels();
    labels.extend(expected::OTHER_LABELS.map(str::to_owned));
    let files = DASHBOARDS.map(|name| format!("dashboards/{name}.json"));
    for file in files.iter().chain([&RULES.to_owned()]) {
        for label in pages::labels_in(&text(file)) {
            assert!(labels.contains(&label), "{file} names the label {label}, which no series has");
        }
    }
}

#[test]
fn every_series_is_drawn_watched_or_explained() {
    let drawn = DASHBOARDS.map(|name| text(&format!("dashboards/{name}.json"))).concat();
    let used = pages::series_in(&(drawn + &text(RULES) + &text("dashboards/README.md")));
    for name in pages::series() {
        assert!(used.contains(&name), "{name} is in no panel, no alert and not in dashboards/README.md");
    }
}

#[test]
fn every_alert_has_a_section_of_the_runbook_and_tests_that_it_fires_and_that_it_does_not() {
    let rules = text(RULES);
    let alerts = pages::yaml_values(&rules, "alert");
    assert!(alerts.len() >= 11, "{alerts:?}");
    let runbook = text(RUNBOOK);
    let addresses = pages::yaml_values(&rules, "runbook_url");
    let tests = text("dashboards/alerts_test.yaml");
    for (alert, address) in alerts.iter().zip(&addresses) {
        assert_eq!(*address, format!("https://nvshare.example.com/{RUNBOOK}#{}", alert.to_lowercase()));
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{RUNBOOK} has no section {alert}");
        let quiet = tests
            .lines()
            .any(|line| line.contains(&format!("{{alertname: {alert}, ")) && line.contains("exp_alerts: []"));
        let fires = tests.contains(&format!("- alertname: {alert}\n"));
        assert!(quiet && fires, "{alert}: tested that it stays quiet: {quiet}, that it fires: {fires}");
    }
    assert_eq!(alerts.len(), addresses.len());
    for what in ["summary", "description"] {
        assert_eq!(pages::yaml_values(&rules, what).len(), alerts.len(), "every alert has a {what}");
    }
}

#[test]
fn the_runbook_begins_and_ends_with_a_stuck_node_and_names_sections_and_commands_that_exist() {
    let runbook = text(RUNBOOK);
    let sections: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections.first(), Some(&"A stuck node at 3 a.m."));
    assert_eq!(sections.last(), Some(&"When nothing helped"));

    let anchors: BTreeSet<String> = sections
        .iter()
        .map(|title| {
            title.to_lowercase().replace(' ', "-").replace(|c: char| !c.is_alphanumeric() && c != '-', "")
        })
        .collect();
    for link in runbook.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(anchors.contains(link), "{RUNBOOK} leads to {link}, which is no section of it");
    }

    let after = runbook.split("nvshare-agent ").skip(1);
    let commands: BTreeSet<&str> =
        after.map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default()).collect();
    let agent = Artifacts::find().agent();
    for command in commands.into_iter().filter(|command| !command.is_empty()) {
        let help = Command::new(&agent).args(["help", command]).output().expect("the agent starts");
        let known = help.status.success();
        assert!(known, "{RUNBOOK} names `nvshare-agent {command}`, which does not exist");
    }
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    if !prometheus::is_installed("promtool_accepts_the_rules_and_their_tests") {
        return;
    }
    let directory = path("dashboards");
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"], &directory, "");
    promtool(&["test", "rules", "alerts_test.yaml"], &directory, "");
}
