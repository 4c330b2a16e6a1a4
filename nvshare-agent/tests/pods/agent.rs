//! The agent's binary with clients in cgroups as the kubelet makes them: real processes, real sockets, a stand-in API
//! server.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nvshare_common::frame;
use nvshare_common::protocol::Hello;
use nvshare_testbed::kubernetes::{Api, NODE, pod};
use nvshare_testbed::{Cgroups, wait_for};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::kubelet;

const LIMIT: Duration = Duration::from_mins(1);
const UID: &str = "4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22";
/// Tells the test binary that it is to be a client, and where the agent is.
const CLIENT: &str = "NVSHARE_TEST_CLIENT";

struct Agent {
    child: Child,
    address: String,
    home: TempDir,
}

impl Agent {
    fn start(more: &[&str]) -> Agent {
        let home = TempDir::with_prefix("nvshare-pods-").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvshare-agent"));
        let path = |name: &str| home.path().join(name);
        command.arg("--socket").arg(path("run/agent.sock"));
        command.arg("--admin-socket").arg(path("admin/admin.sock"));
        command.arg("--nvml").arg(path("no-nvml.so")).args(["--listen", "127.0.0.1:0", "--no-uprobes"]);
        command.args(["--log-format", "json", "--node-name", NODE]).args(more);
        command.env_remove("KUBERNETES_SERVICE_HOST").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the agent");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the agent ended");
            let line: Value = serde_json::from_str(&line).expect("a line of JSON");
            if let Some(address) = line["fields"]["http"].as_str() {
                break address.to_owned();
            }
        };
        // Somebody has to read what else it says.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Agent { child, address, home }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("run/agent.sock")
    }

    fn get(&self, path: &str) -> String {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The one client, once its owner is `expected`.
    fn client_of(&self, expected: [&str; 3]) -> Value {
        let [namespace, pod, container] = expected;
        let owner = json!({"namespace": namespace, "pod": pod, "container": container});
        wait_for(&format!("a client of {owner}"), LIMIT, || {
            let state: Value = serde_json::from_str(&self.get("/api/v1/state")).ok()?;
            state["clients"].as_array()?.iter().find(|client| client["owner"] == owner).cloned()
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that connects when it is told to and lives until it is dropped.
struct Client(Child);

impl Client {
    fn new(socket: &Path, devices: &str) -> Client {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "agent::a_client_says_hello", "--ignored", "--nocapture"]);
        command.env(CLIENT, socket).env("NVSHARE_DEVICE_IDS", devices);
        Client(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn connect(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what a [`Client`] does.
#[test]
#[ignore = "the client's part of other tests"]
fn a_client_says_hello() {
    let Some(path) = std::env::var_os(CLIENT) else { return };
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let hello =
        Hello { release: "0.1.0".to_owned(), running: false, devices: vec![], arenas: 0, bypass: false };
    let packet = frame::encode_hello(&hello).unwrap();
    rustix::net::send(&socket, &packet, SendFlags::empty()).unwrap();
    let mut answer = vec![0; frame::MAX_BYTES];
    rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty()).unwrap();
    // Until the test closes it.
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_client_in_a_pods_cgroup_has_the_pods_labels_and_obeys_its_annotations_until_it_ends() {
    let id = "a".repeat(64);
    let cgroups = Cgroups::new();
    let Some(cgroup) = cgroups.make(&format!("kubepods/burstable/pod{UID}/{id}")) else {
        eprintln!("SKIPPED: no cgroup can be made here; run as root with a writable /sys/fs/cgroup");
        return;
    };
    let runtime = Runtime::new().unwrap();
    let api = runtime.block_on(async { Api::start(TcpListener::bind("127.0.0.1:0").await.unwrap()) });
    let annotations = json!({"nvshare.com/priority": "urgent", "nvshare.com/weight": "2", "nvshare.com/memory-limit": "8Gi"});
    api.put(pod("train-0", UID, None, annotations.clone()));
    let agent = Agent::start(&["--kube-api", &api.url().to_string()]);
    let mut client = Client::new(&agent.socket(), "");
    std::fs::write(cgroup.join("cgroup.procs"), client.0.id().to_string()).unwrap();
    client.connect();
    agent.client_of(["ml", "train-0", "aaaaaaaaaaaa"]);
    api.put(pod("train-0", UID, Some(("trainer", &id)), annotations));
    let known = agent.client_of(["ml", "train-0", "trainer"]);
    let notes = known["notes"].to_string();
    assert!(notes.contains("nvshare.com/priority") && notes.contains("high, normal or low"), "{notes}");
    assert_eq!((&known["weight"], &known["priority"]), (&json!(2.0), &json!("normal")));
    assert_eq!(known["ordered_limit"], json!(8_u64 << 30));
    let labels = "namespace=\"ml\",pod=\"train-0\",container=\"trainer\"";
    let metrics = agent.get("/metrics");
    assert!(metrics.contains(labels), "{metrics}");
    assert!(metrics.contains("nvshare_part_missing{part=\"pods\"} 0"), "{metrics}");

    api.put(pod("train-0", UID, Some(("trainer", &id)), json!({"nvshare.com/priority": "low"})));
    wait_for("the client obeys the new annotations", LIMIT, || {
        let known = agent.client_of(["ml", "train-0", "trainer"]);
        let defaults = known["weight"] == json!(1.0) && known["ordered_limit"].is_null();
        (known["priority"] == "low" && defaults && known["notes"] == json!([])).then_some(())
    });

    drop(client);
    wait_for("the series vanish with the client", LIMIT, || {
        (!agent.get("/metrics").contains(labels)).then_some(())
    });
}

#[test]
fn without_an_api_server_a_client_is_known_by_the_device_ids_that_it_was_given() {
    let runtime = Runtime::new().unwrap();
    let sockets = TempDir::with_prefix("nvshare-pods-").unwrap();
    let socket = sockets.path().join("kubelet.sock");
    let _guard = runtime.enter();
    kubelet::serve(&socket, "GPU-1::3");
    let agent = Agent::start(&["--pod-resources", socket.to_str().unwrap()]);
    let mut client = Client::new(&agent.socket(), "GPU-1::3");
    client.connect();
    agent.client_of(["ml", "infer", "server"]);
    assert!(agent.get("/metrics").contains("pod=\"infer\""));
}
