//! A Prometheus beside a node at work, asked for everything that the dashboards and the rules ask for.

use std::time::{Duration, Instant};

use nvshare_testbed::{Client, Node, wait_for};
use serde_json::Value;

use crate::pages::{DASHBOARDS, dashboard, expressions, panels, path};
use crate::prometheus::{self, Prometheus, promtool};
use crate::{RULES, expected, pages};

/// A card of 96 MiB behind a link on which a switch lasts a fifth of a second.
fn node() -> Node {
    node_with("96M")
}

fn node_with(card: &str) -> Node {
    Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", card)
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "400000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        // What strangers do to the observer could make an alert hold.
        .alone()
        .build()
}

/// Something that is asked of Prometheus until it has an answer.
struct Question {
    asked_by: String,
    expression: String,
    /// The label that must be there, for variables.
    label: Option<String>,
}

impl Question {
    fn new(asked_by: &str, expression: &str, instance: &str) -> Question {
        let expression =
            expression.replace("$__rate_interval", "15s").replace("$node", instance).replace("$gpu", ".*");
        assert!(
            !expression.contains('$'),
            "{asked_by}: a variable that this test does not know: {expression}"
        );
        Question { asked_by: asked_by.to_owned(), expression, label: None }
    }

    /// Data means numbers: a quantile of nothing is not one.
    fn is_answered(&self, prometheus: &Prometheus) -> bool {
        let samples =
            prometheus.query(&self.expression).unwrap_or_else(|error| panic!("{}: {error:#}", self.asked_by));
        let labelled = |labels: &Value| self.label.as_ref().is_none_or(|label| labels[label].is_string());
        samples.iter().any(|(labels, value)| !value.is_nan() && labelled(labels))
    }
}

/// Of every panel, variable, recorded series and alert; of an alert only what it looks at: on a node that is well its
/// condition does not hold.
fn questions(instance: &str, rules: &[Value]) -> Vec<Question> {
    let mut questions = Vec::new();
    for name in DASHBOARDS {
        let board = dashboard(name);
        for (expression, label) in pages::variables(&board) {
            let question = Question::new(&format!("{name}, variable"), &expression, instance);
            questions.push(Question { label: Some(label), ..question });
        }
        for panel in panels(&board) {
            let asked_by = format!("{name}, {}", panel["title"]);
            questions.extend(expressions(&panel).iter().map(|expr| Question::new(&asked_by, expr, instance)));
        }
    }
    for rule in rules {
        let name = rule["name"].as_str().expect("the name of a rule");
        let expression = rule["query"].as_str().expect("the expression of a rule");
        if rule["type"] == "recording" {
            questions.push(Question::new(name, expression, instance));
        }
        questions.extend(pages::selectors(expression).iter().map(|part| Question::new(name, part, instance)));
    }
    questions
}

#[test]
fn every_expression_has_data_while_a_node_is_at_work() {
    if !prometheus::is_installed("every_expression_has_data_while_a_node_is_at_work") {
        return;
    }
    let node = node();
    let agent = node.agent(["--lease-floor", "1s", "--lease-ceiling", "1s", "--reserve", "2M"]);
    let start = |seed| {
        let flags = format!("--bytes 64M --buffers 4 --seed {seed} --seconds 150 --read-only-share 0.5");
        Client::start(&mut node.workload(&flags).with_shim())
    };
    let _clients = [1, 2, 3].map(start);
    let prometheus = Prometheus::start(&node, &agent, &path(RULES));
    let rules = prometheus.rules();

    let mut open = questions(&agent.address().to_string(), &rules);
    open.retain(|question| !expected::may_be_empty(&question.expression));
    let end = Instant::now() + Duration::from_mins(2);
    while !open.is_empty() && Instant::now() < end {
        open.retain(|question| !question.is_answered(&prometheus));
        std::thread::sleep(Duration::from_millis(200));
    }
    let left: Vec<String> =
        open.iter().map(|question| format!("{}: {}", question.asked_by, question.expression)).collect();
    assert!(left.is_empty(), "no data for\n{}", left.join("\n"));

    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
        if rule["type"] == "alerting" {
            let holds = prometheus.query(rule["query"].as_str().expect("an expression")).expect("an answer");
            assert!(holds.is_empty(), "{} is about to fire on a node that is well: {holds:?}", rule["name"]);
        }
    }

    let (status, page) = agent.get("/metrics").expect("the series");
    assert_eq!(status, 200);
    promtool(&["check", "metrics"], node.path(), &page);
}

/// That the condition of an alert is met by what a node really exports. The time for which it must hold is another matter.
fn wait_until_it_holds(prometheus: &Prometheus, rules: &[Value], alert: &str) {
    let rule = rules.iter().find(|rule| rule["name"] == alert).unwrap_or_else(|| panic!("no alert {alert}"));
    let condition = rule["query"].as_str().expect("an expression");
    wait_for(alert, Duration::from_mins(1), || {
        let holds = prometheus.query(condition).unwrap_or_else(|error| panic!("{alert}: {error:#}"));
        (!holds.is_empty()).then_some(())
    });
}

#[test]
fn alerts_hold_where_memory_cannot_be_moved_and_where_the_agent_is_gone() {
    if !prometheus::is_installed("alerts_hold_where_memory_cannot_be_moved_and_where_the_agent_is_gone") {
        return;
    }
    let node = node_with("144M");
    let mut agent = node.agent(["--lease-ceiling", "1s", "--reserve", "2M", "--host-memory", "16M"]);
    let start =
        |flags: &str| Client::start(&mut node.workload(&format!("{flags} --seconds 100")).with_shim());
    // Two fifths of the card for good (nobody moves a pool that may be exported), and then two who want a third of it each, at once, with
    // nowhere to go.
    let _stays = start("--bytes 32M --buffers 4 --memory exportable-pool");
    wait_for("memory that stays", Duration::from_mins(1), || {
        (agent.state()["devices"][0]["unswappable"].as_u64()? >= 32 << 20).then_some(())
    });
    let _clients = ["--bytes 48M --buffers 1 --seed 2", "--bytes 48M --buffers 1 --seed 3"].map(start);
    let prometheus = Prometheus::start(&node, &agent, &path(RULES));
    let rules = prometheus.rules();
    wait_until_it_holds(&prometheus, &rules, "NvshareUnswappableMemory");
    wait_until_it_holds(&prometheus, &rules, "NvshareHostMemoryExhausted");
    agent.kill();
    wait_until_it_holds(&prometheus, &rules, "NvshareAgentAbsent");
}
