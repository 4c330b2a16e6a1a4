//! What the documents tell to type: that it can run where they say, and that what they pick out of JSON is there.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nvshare_testbed::{Client, Node, wait_for};
use serde_json::Value;

use crate::RUNBOOK;
use crate::pages::{path, text};

/// The blocks of commands, each with the line before it.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    let (mut open, mut before) = (false, "");
    for line in text.lines().map(str::trim) {
        match (line, open) {
            ("```", false) => blocks.push((before, Vec::new())),
            ("```", true) => {}
            (line, true) => blocks.last_mut().expect("a block is open").1.push(line),
            (line, false) => before = line,
        }
        open ^= line == "```";
    }
    blocks
}

#[test]
fn every_block_of_the_runbook_says_where_it_is_typed_and_can_run_there() {
    let runbook = text(RUNBOOK);
    let blocks = blocks(&runbook);
    assert!(blocks.len() > 15, "{blocks:?}");
    for (before, lines) in blocks {
        let tunnel = lines.iter().any(|line| line.contains("port-forward"));
        for line in lines {
            let program = line.split(' ').next().unwrap_or_default();
            let runs = if before.ends_with("At the agent:") {
                program == "nvshare-agent"
            } else if before.to_lowercase().ends_with("on the node:") {
                !["nvshare-agent", "kubectl"].contains(&program)
            } else if before.ends_with("With kubectl:") {
                program == "kubectl" || (program == "curl" && tunnel)
            } else {
                panic!("{RUNBOOK} does not say where this is typed, after `{before}`: {line}")
            };
            assert!(runs, "{RUNBOOK}, after `{before}`: there is no {program} there: {line}");
        }
    }
}

/// What a filter of jq makes of a value: paths, pipes, arrays and objects, which is what the documents need.
struct Filter<'a>(&'a str);

impl<'a> Filter<'a> {
    /// Whether this is what comes next; if so it is passed.
    fn eats(&mut self, what: &str) -> bool {
        self.0 = self.0.trim_start();
        let rest = self.0.strip_prefix(what);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn word(&mut self) -> &'a str {
        let end = self.0.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word
    }

    /// The values that come out; an error names the key that no value has.
    fn pipe(&mut self, input: &[Value]) -> Result<Vec<Value>, String> {
        let mut values = self.term(input)?;
        while self.eats("|") {
            values = self.term(&values)?;
        }
        Ok(values)
    }

    fn term(&mut self, input: &[Value]) -> Result<Vec<Value>, String> {
        if self.eats("@") {
            self.word();
            return Ok(input.to_vec());
        }
        for (open, close) in [("[", "]"), ("{", "}")] {
            if self.eats(open) {
                while !self.eats(close) {
                    self.0 = self.0.trim_start();
                    let named = open == "{" && {
                        let key = self.word();
                        let has_value = self.eats(":");
                        if !has_value {
                            keyed(input, key)?;
                        }
                        !has_value
                    };
                    if !named {
                        self.pipe(input)?;
                    }
                    self.eats(",");
                }
                return Ok(vec![Value::Null]);
            }
        }
        let (start, mut values) = (self.0, input.to_vec());
        loop {
            if self.eats("[]") {
                values = values.iter().filter_map(Value::as_array).flatten().cloned().collect();
            } else if self.eats(".") {
                let key = self.word();
                values = if key.is_empty() { values } else { keyed(&values, key)? };
            } else if self.0 == start {
                return Err(format!("this test does not know what `{start}` means"));
            } else {
                return Ok(values);
            }
        }
    }
}

fn keyed(values: &[Value], key: &str) -> Result<Vec<Value>, String> {
    let found: Vec<Value> = values.iter().filter_map(|value| value.get(key)).cloned().collect();
    if found.is_empty() { Err(format!("nothing has the key `{key}`")) } else { Ok(found) }
}

#[test]
fn a_key_that_is_not_there_is_found_out() {
    let value = [serde_json::json!({"state": {"clients": [{"client": 1, "devices": [{"uuid": "x"}]}]}})];
    let of = |filter| Filter(filter).pipe(&value).map(|_| ());
    assert_eq!(of(".state.clients[] | [.client, .devices[].uuid] | @tsv"), Ok(()));
    assert_eq!(of(".state.clients[] | {client, why: [.devices[].uuid]}"), Ok(()));
    for (filter, key) in [
        (".clients[]", "clients"),
        (".state.clients[] | [.client, .shim] | @tsv", "shim"),
        (".state.clients[] | {client, name}", "name"),
        (".state.clients[] | {client, why: [.devices[].reasons]}", "reasons"),
        (".state.clients[] | select(.client)", "select"),
    ] {
        let error = of(filter).unwrap_err();
        assert!(error.contains(key), "{filter}: {error}");
    }
}

#[test]
fn what_the_documents_pick_out_of_json_is_there() {
    let mut typed: Vec<(String, String)> = Vec::new();
    for file in fs::read_dir(path("docs")).expect("docs").map(|entry| entry.expect("a file").path()) {
        if file.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&file).expect("a document");
            let lines = text.lines().filter_map(|line| line.split_once("| jq "));
            typed.extend(lines.map(|(command, filter)| (command.to_owned(), filter.to_owned())));
        }
    }
    assert!(typed.len() >= 2, "{typed:?}");

    let node = Node::new();
    let agent = node.agent(["--reserve", "2M"]);
    let _client = Client::start(&mut node.workload("--bytes 8M --seconds 60").with_shim());
    wait_for("a client that holds memory", Duration::from_secs(30), || {
        agent.state()["clients"][0]["devices"][0]["resident"].as_u64().filter(|bytes| *bytes > 0)
    });
    for (command, filter) in typed {
        let words =
            command.trim().strip_prefix("nvshare-agent ").expect("JSON of the agent").split_whitespace();
        let mut program = Command::new(node.artifacts().agent());
        let output = program.args(words).arg("--admin-socket").arg(node.admin_socket()).output();
        let output = output.expect("the agent's program");
        assert!(output.status.success(), "{command}: {output:?}");
        let value = serde_json::from_slice(&output.stdout).expect("JSON");
        let filter = filter.split('\'').nth(1).expect("a filter in quotes");
        let mut parser = Filter(filter);
        let picked =
            parser.pipe(&[value]).unwrap_or_else(|error| panic!("{command}| jq '{filter}': {error}"));
        assert!(!picked.is_empty() && parser.0.trim().is_empty(), "{filter}: left is `{}`", parser.0);
    }
}
