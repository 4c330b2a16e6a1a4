//! Debian's `prometheus` as a process of a test, and `promtool`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nvshare_testbed::{Agent, Client, Node, wait_for};
use serde_json::Value;

/// Whether `prometheus` and `promtool` are there. Says so loudly where they are not: then the test is skipped.
pub(crate) fn is_installed(test: &str) -> bool {
    let runs = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let there = runs("prometheus") && runs("promtool");
    if !there {
        // Not eprintln: what a test that passes says by that is not shown.
        let _ = writeln!(
            io::stderr(),
            "SKIPPED: {test} needs prometheus and promtool: apt-get install prometheus"
        );
    }
    there
}

/// Runs `promtool` and demands that it is content.
pub(crate) fn promtool(arguments: &[&str], directory: &Path, input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("promtool reads its input");
    let output = child.wait_with_output().expect("promtool ends");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

/// One series of the answer to a question: its labels, and its value.
pub(crate) type Sample = (Value, f64);

/// A Prometheus that scrapes one agent every second. It dies with this value.
pub(crate) struct Prometheus {
    _process: Client,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts one with the project's rules, and waits until it answers.
    pub(crate) fn start(node: &Node, agent: &Agent, rules: &Path) -> Prometheus {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = address.expect("a free port");
        let file = node.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs: [{{job_name: nvshare, honor_labels: true, static_configs: [{{targets: ['{}']}}]}}]\n",
            rules.display(),
            agent.address()
        );
        fs::write(&file, text).expect("Prometheus' configuration");
        let mut command = node.client("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", node.path().join("series").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=warn");
        let process = Client::start(&mut command);
        let prometheus = Prometheus { _process: process, address };
        wait_for("Prometheus answers", Duration::from_secs(30), || prometheus.query("vector(1)").ok());
        prometheus
    }

    /// The value of an expression now.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression)))?;
        ensure!(answer["status"] == "success", "{expression}: {}", answer["error"]);
        let samples = answer["data"]["result"].as_array().context("an instant vector")?;
        let value = |sample: &Value| -> Result<Sample> {
            let value = sample["value"][1].as_str().context("a value")?;
            Ok((sample["metric"].clone(), value.parse()?))
        };
        samples.iter().map(value).collect()
    }

    /// Every rule it loaded, as it sees them: name, type, query, health.
    pub(crate) fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules").expect("Prometheus' rules");
        let groups = answer["data"]["groups"].as_array().expect("groups of rules");
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }

    /// HTTP/1.0, so that no answer comes in chunks.
    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: prometheus\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a header")?;
        serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
    }
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
