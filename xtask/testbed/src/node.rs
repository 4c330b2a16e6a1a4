//! The node: directories, a simulated card, and the environment in which its agent and clients run.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::die_with_parent;
use crate::{Agent, Artifacts, ClientCommand, ContainerBuilder, NodeCgroup, wait_for};

/// How long an order may find no client: the agent may still be to meet it.
const ORDERED: Duration = Duration::from_secs(30);

/// A node of its own. Dropping it removes its directories; drop agents and clients first.
pub struct Node {
    artifacts: Artifacts,
    card: Option<TempDir>,
    root: TempDir,
    environment: Vec<(OsString, OsString)>,
    /// Goes when everything in it has ended.
    cgroup: Option<NodeCgroup>,
}

/// What a node is made of.
#[derive(Default)]
pub struct NodeBuilder {
    artifacts: Option<Artifacts>,
    environment: Vec<(OsString, OsString)>,
    real: bool,
    alone: bool,
}

impl NodeBuilder {
    /// Sets a variable for everything that runs on the node: `NVSHARE_SIM_CARD_BYTES` and the like.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> NodeBuilder {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Uses these artifacts instead of [`Artifacts::find`].
    #[must_use]
    pub fn artifacts(mut self, artifacts: Artifacts) -> NodeBuilder {
        self.artifacts = Some(artifacts);
        self
    }

    /// Uses the machine's own driver and GPU instead of a simulated card.
    #[must_use]
    pub fn real(mut self) -> NodeBuilder {
        self.real = true;
        self
    }

    /// Gives the node's clients a cgroup of their own, which is all that its agents observe. For a test that counts what an
    /// observer found: other programs of the machine use CUDA libraries too.
    #[must_use]
    pub fn alone(mut self) -> NodeBuilder {
        self.alone = true;
        self
    }

    /// Makes the directories.
    ///
    /// # Panics
    /// Where the file system refuses.
    pub fn build(self) -> Node {
        let artifacts = self.artifacts.unwrap_or_else(Artifacts::find);
        let root = TempDir::with_prefix("nvshare-node-").expect("a temporary directory");
        for name in ["lib", "run", "admin"] {
            fs::create_dir(root.path().join(name)).expect("a directory of the node");
        }
        let cgroup = self.alone.then(NodeCgroup::new).flatten();
        let mut node = Node { artifacts, card: None, root, environment: self.environment, cgroup };
        if !self.real {
            let copy = |from: PathBuf, to: PathBuf| {
                fs::copy(&from, &to)
                    .unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
            };
            copy(node.artifacts.libcuda(), node.libcuda());
            copy(node.artifacts.nvml(), node.nvml());
            // Some programs ask for the library without a version first.
            symlink("libcuda.so.1", node.path().join("lib/libcuda.so"))
                .expect("a link to the driver library");
            node.card = Some(card_directory());
        }
        node
    }
}

/// The card's memory is a file: on tmpfs it is memory, elsewhere the disk would see every byte.
fn card_directory() -> TempDir {
    TempDir::with_prefix_in("nvshare-card-", "/dev/shm")
        .or_else(|_| TempDir::with_prefix("nvshare-card-"))
        .expect("a temporary directory for the simulated card")
}

impl Node {
    /// A node with a simulated card as the simulator makes it by default.
    pub fn new() -> Node {
        Node::builder().build()
    }

    /// For other cards.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// What the node's programs are made of.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// The node's directory: free for a test's own files.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The node's own copy of the simulator (on a real node: nothing).
    pub fn libcuda(&self) -> PathBuf {
        self.path().join("lib/libcuda.so.1")
    }

    /// The node's NVML.
    pub fn nvml(&self) -> PathBuf {
        self.path().join("lib/libnvidia-ml.so.1")
    }

    /// The simulated card's directory; `None` on a real node.
    pub fn card(&self) -> Option<&Path> {
        self.card.as_ref().map(TempDir::path)
    }

    /// Where the agent listens for clients.
    pub fn socket(&self) -> PathBuf {
        self.path().join("run/agent.sock")
    }

    /// Where the agent listens for its administrator.
    pub fn admin_socket(&self) -> PathBuf {
        self.path().join("admin/admin.sock")
    }

    /// Orders the client in this process to leave the card (`out`) or to come back (`in`), as soon as the agent knows it.
    ///
    /// # Panics
    /// Where the agent does not take the order in time.
    pub fn swap(&self, way: &str, process: u32) {
        let mut order = self.client(self.artifacts.agent());
        order.args(["swap", way, &format!("pid:{process}"), "--admin-socket"]).arg(self.admin_socket());
        wait_for("the order", ORDERED, || order.output().expect("it runs").status.success().then_some(()));
    }

    /// A command with the node's environment: it finds the node's driver, card and agent.
    pub fn client(&self, program: impl AsRef<OsStr>) -> ClientCommand {
        let mut command = self.command(program);
        command.env("NVSHARE_SOCKET", self.socket());
        self.enter(&mut command);
        ClientCommand { command, shim: self.artifacts.shim() }
    }

    /// Makes one of the node's processes of a command that is none of its clients. (For [`NodeBuilder::alone`].)
    pub fn enter(&self, command: &mut Command) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.enter(command);
        }
    }

    /// A workload with these flags (separated by spaces) that will report in JSON.
    pub fn workload(&self, flags: &str) -> ClientCommand {
        let mut client = self.client(self.artifacts.workload());
        client.arg("--json").args(flags.split_whitespace());
        client
    }

    /// Shows a container what stands for this node's driver and card, and gives it the environment that both need.
    ///
    /// # Panics
    /// On a real node, whose driver a container runtime would have to add.
    #[must_use]
    pub fn card_in(&self, container: ContainerBuilder) -> ContainerBuilder {
        let card = self.card().expect("a simulated card");
        let container = container
            .mount_read_only(self.path().join("lib"), "/opt/driver")
            // A simulated card's UUID comes from its path.
            .mount(card, card)
            // The simulator knows processes by their ids outside, as the real driver does.
            .mount_read_only("/proc", "/opt/proc")
            .env("LD_LIBRARY_PATH", "/opt/driver")
            .env("NVSHARE_SIM_DIR", card.to_string_lossy())
            .env("NVSHARE_SIM_PROC", "/opt/proc");
        self.environment.iter().fold(container, |container, (name, value)| {
            container.env(name.to_string_lossy(), value.to_string_lossy())
        })
    }

    /// A container that will run a workload with these flags (separated by spaces) and report in JSON.
    #[must_use]
    pub fn workload_container(&self, flags: &str) -> ContainerBuilder {
        const PROGRAM: &str = "/opt/nvshare-workload";
        let arguments = [PROGRAM, "--json"].into_iter().chain(flags.split_whitespace());
        self.card_in(ContainerBuilder::new(arguments)).mount_read_only(self.artifacts.workload(), PROGRAM)
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Panics
    /// Where it does not get ready.
    pub fn agent<A: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = A>) -> Agent {
        let mut agent = self.start_agent(flags);
        agent.wait_ready();
        agent
    }

    /// Starts the agent and does not wait.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start_agent<A: AsRef<OsStr>>(&self, flags: impl IntoIterator<Item = A>) -> Agent {
        let mut command = self.command(self.artifacts.agent());
        // A kubelet of the machine must not hear of this node, unless a flag says otherwise.
        command.env("NVSHARE_AGENT_DEVICE_PLUGIN", "off");
        command.arg("--socket").arg(self.socket()).arg("--admin-socket").arg(self.admin_socket());
        if let Some(card) = self.card() {
            command.arg("--nvml").arg(self.nvml()).arg("--libcuda").arg(self.libcuda());
            command.arg("--uvm-tools").arg(card.join("nvidia-uvm"));
        }
        if let Some(cgroup) = &self.cgroup {
            command.arg("--node-cgroup").arg(cgroup.path());
        }
        let flags: Vec<OsString> = flags.into_iter().map(|flag| flag.as_ref().to_owned()).collect();
        match self.artifacts.ebpf() {
            Some(object) => {
                command.arg("--ebpf-object").arg(object);
            }
            None if flags.iter().any(|flag| flag == "--no-uprobes") => {}
            None => {
                command.arg("--no-uprobes");
            }
        }
        command.args(flags);
        Agent::spawn(command, self.path().join("agent.log"))
    }

    /// What the strict simulator complained about so far: must be empty at the end of a test.
    pub fn violations(&self) -> Vec<String> {
        let Some(card) = self.card() else { return Vec::new() };
        let text = fs::read_to_string(card.join("violations")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(card) = self.card() {
            command.env("LD_LIBRARY_PATH", self.path().join("lib")).env("NVSHARE_SIM_DIR", card);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        die_with_parent(&mut command);
        command
    }
}

impl Default for Node {
    fn default() -> Node {
        Node::new()
    }
}
