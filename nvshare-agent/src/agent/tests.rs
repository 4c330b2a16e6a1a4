//! A running agent whose parts end, and what is told of its devices.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use clap::Parser;
use nvshare_agent_core::reading::Reading;

use super::*;
use crate::config::Cli;

/// An agent without uprobes, NVML, pods and plugin.
async fn small(home: &Path) -> Agent {
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let (clients, admin) = (path("clients/agent.sock"), path("admin/admin.sock"));
    let line = ["nvshare-agent", "--socket", &clients, "--admin-socket", &admin, "--nvml", "/nowhere"];
    let more = ["--listen", "127.0.0.1:0", "--no-uprobes", "--no-pods", "--device-plugin", "off"];
    let cli = Cli::try_parse_from(line.iter().chain(&more)).unwrap();
    Agent::start(&cli.config).await.unwrap()
}

/// What is answered before the connection is closed, or nobody answers.
fn ask(mut stream: impl Read + Write, question: &str) -> String {
    let mut answer = Vec::new();
    stream.write_all(question.as_bytes()).unwrap();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn page(address: SocketAddr, path: &str) -> String {
    let stream = TcpStream::connect(address).unwrap();
    ask(stream, &format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"))
}

fn status(home: &Path) -> String {
    let stream = UnixStream::connect(home.join("admin/admin.sock")).unwrap();
    let said = stream.try_clone().unwrap();
    said.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    ask(stream, "{\"request\":\"status\"}\n")
}

/// Ends a part of a running agent, and looks until `shown`.
async fn end(part: Part, shown: impl Fn(&Path, SocketAddr) -> bool + Send + 'static) {
    let home = tempfile::tempdir().unwrap();
    let mut agent = small(home.path()).await;
    let (address, path) = (agent.address(), home.path().to_owned());
    tokio::task::yield_now().await;
    agent.tasks.end(part);
    let looked = tokio::task::spawn_blocking(move || {
        nvshare_testbed::wait_for("the end is shown", Duration::from_secs(20), || {
            shown(&path, address).then_some(())
        });
    });
    tokio::select! {
        failed = agent.failed() => panic!("the agent ended: {failed}"),
        looked = looked => looked.unwrap(),
    }
    agent.stop().await;
}

fn is_told(text: &str, part: Part) -> bool {
    text.contains(&format!("\"part\":\"{}\",\"why\":\"it was cancelled", part.name()))
}

fn is_counted(text: &str, part: Part) -> bool {
    text.contains(&format!("nvshare_part_missing{{part=\"{}\"}} 1", part.name()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_ends_is_missing_in_readyz_the_metric_and_status() {
    for part in [Part::Plugin, Part::Report, Part::Attribution, Part::Pods] {
        end(part, move |home, address| {
            is_told(&page(address, "/readyz"), part)
                && is_counted(&page(address, "/metrics"), part)
                && is_told(&status(home), part)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_tell_that_the_administrators_socket_ended_and_the_other_way_round() {
    end(Part::Admin, |_, address| {
        is_told(&page(address, "/readyz"), Part::Admin) && is_counted(&page(address, "/metrics"), Part::Admin)
    })
    .await;
    end(Part::Pages, |home, _| is_told(&status(home), Part::Pages)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_its_conductor_or_its_clients_ends_and_says_why() {
    for part in [Part::Conductor, Part::Clients] {
        let home = tempfile::tempdir().unwrap();
        let mut agent = small(home.path()).await;
        agent.tasks.end(part);
        let why = agent.failed().await.to_string();
        assert!(why.contains(part.name()) && why.contains("it was cancelled"), "{why}");
        agent.stop().await;
    }
}

#[test]
fn a_card_that_is_late_beside_one_that_hangs_is_not_missing() {
    let (inputs, _heard) = conductor::inputs();
    let health = Health::new();
    let mut tell = readings(inputs, health.clone(), Arc::default());
    let problem = Some("GPU 1 has not answered".to_owned());
    let incomplete = Report { began: clock::now(), problem, ..Report::default() };
    let missing = || health.readiness().missing.iter().any(|missing| missing.why.contains("GPU 1"));
    let first = Reading {
        device: nvshare_common::ids::DeviceId([1; 16]),
        index: 0,
        name: String::new(),
        total: nvshare_common::bytes::Bytes::GIB,
        used: nvshare_common::bytes::Bytes::ZERO,
        link: None,
        per_process: std::collections::BTreeMap::new(),
    };
    tell(Report { devices: vec![first], ..incomplete.clone() });
    tell(incomplete.clone());
    assert!(!missing(), "it answered a moment ago");
    tell(Report { complete: true, ..incomplete });
    assert!(missing(), "nothing can be read");
}

#[test]
fn an_nvml_that_answers_no_more_is_missing() {
    let read = Moment(1);
    assert_eq!(silence(read, read + SILENCE), None);
    let why = silence(read, read + SILENCE + Duration::from_millis(1)).unwrap();
    assert!(why.contains("nvidia-smi"), "{why}");
}
