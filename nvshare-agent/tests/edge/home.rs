//! An agent with a directory of its own, on a machine that has next to nothing it wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvshare-agent"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NVSHARE_") {
            command.env_remove(name);
        }
    }
    // The machine's own kubelet must not hear of it.
    command.env("NVSHARE_AGENT_DEVICE_PLUGIN", "off");
    command.stdin(Stdio::null());
    command
}

pub(crate) struct Home(pub(crate) TempDir);

impl Home {
    pub(crate) fn new() -> Home {
        Home(TempDir::with_prefix("nvshare-edge-").unwrap())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("run/agent.sock")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.0.path().join("admin/admin.sock")
    }

    /// The agent with this home, and whatever else.
    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let mut command = agent();
        command.arg("--socket").arg(self.socket()).arg("--admin-socket").arg(self.admin_socket());
        command.arg("--nvml").arg(self.nvml()).args(["--log-format", "json"]).args(more);
        command
    }

    /// Where NVML would be.
    pub(crate) fn nvml(&self) -> PathBuf {
        self.0.path().join("libnvidia-ml.so.1")
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(&["--no-uprobes"])
    }

    pub(crate) fn start_with(&self, more: &[&str]) -> Running {
        let mut command = self.command(&["--listen", "127.0.0.1:0"]);
        command.args(more);
        command.env("NVSHARE_SIM_DIR", self.0.path().join("card")).env("NVSHARE_SIM_CARDS", "2");
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the agent");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the agent ended; it said:\n{said}");
            said.push_str(&line);
            let line: Value = serde_json::from_str(&line).expect("a line of JSON");
            if let Some(address) = line["fields"]["http"].as_str() {
                break address.parse().unwrap();
            }
        };
        Running { child, address, log: Some(log) }
    }

    pub(crate) fn ask(&self, command: &str, more: &[&str]) -> Output {
        agent().arg(command).arg("--admin-socket").arg(self.admin_socket()).args(more).output().unwrap()
    }
}

pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) log: Option<BufReader<ChildStderr>>,
}

impl Running {
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
