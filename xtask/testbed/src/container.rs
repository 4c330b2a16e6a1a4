//! Containers as a container runtime makes them, by `runc`: programs with mount, pid, network, IPC and cgroup namespaces
//! and a cgroup of their own, and no capability unless asked for. Their root shows the programs and libraries of this machine,
//! read-only.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{die_with_parent, is_root};
use crate::{Cgroups, wait_for};

/// No container of a test works longer than this, even beside a busy compiler.
const LIMIT: Duration = Duration::from_mins(4);
/// What a container's own root shows of this machine.
const OF_THE_MACHINE: [&str; 7] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr"];
/// All capabilities in the kernel's order, as runc names them, without `CAP_`.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT \
    SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE \
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ \
    PERFMON BPF CHECKPOINT_RESTORE";

/// What a container is to be.
#[derive(Clone, Debug, Default)]
pub struct ContainerBuilder {
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    mounts: Vec<Value>,
    capabilities: Vec<String>,
    privileged: bool,
    host_pid: bool,
    host_network: bool,
    cgroup: Option<String>,
    read_only: bool,
}

/// A container that was started. It is killed and deleted with this value, and when this process dies.
pub struct Container {
    name: String,
    bundle: TempDir,
    runc: Child,
    status: Option<ExitStatus>,
    /// Deletes it.
    undertaker: Child,
    /// Go after the container.
    _cgroups: Cgroups,
}

/// Whether there is `runc` to make containers with, and this user may. Says loudly what to do where not.
pub fn containers_work() -> bool {
    if !is_root() {
        eprintln!("SKIPPED: containers need root, nothing was tested in them: run the tests as root");
        return false;
    }
    let there = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no runc, nothing was tested in containers: `apt-get install runc`");
        return false;
    }
    true
}

impl ContainerBuilder {
    /// A container that runs `arguments`, the first of which is a path inside of it.
    #[must_use]
    pub fn new<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> ContainerBuilder {
        ContainerBuilder {
            arguments: arguments.into_iter().map(Into::into).collect(),
            ..ContainerBuilder::default()
        }
    }

    /// Sets a variable; the last one counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> ContainerBuilder {
        let name = name.into();
        self.environment.retain(|(present, _)| *present != name);
        self.environment.push((name, value.into()));
        self
    }

    /// Shows a file or directory of this machine.
    #[must_use]
    pub fn mount(self, host: impl AsRef<Path>, inside: impl AsRef<Path>) -> ContainerBuilder {
        self.bind(host.as_ref(), inside.as_ref(), "rw")
    }

    /// Shows a file or directory of this machine, read-only.
    #[must_use]
    pub fn mount_read_only(self, host: impl AsRef<Path>, inside: impl AsRef<Path>) -> ContainerBuilder {
        self.bind(host.as_ref(), inside.as_ref(), "ro")
    }

    fn bind(mut self, host: &Path, inside: &Path, access: &str) -> ContainerBuilder {
        // As container runtimes do: what a link points to now stays mounted.
        let host = fs::canonicalize(host)
            .unwrap_or_else(|error| panic!("cannot mount {} into a container: {error}", host.display()));
        self.mounts.push(json!({
            "destination": inside, "type": "bind", "source": host, "options": ["rbind", "rprivate", access],
        }));
        self
    }

    /// Gives these capabilities, named without `CAP_`.
    #[must_use]
    pub fn capabilities(mut self, names: &[&str]) -> ContainerBuilder {
        self.capabilities = names.iter().map(|name| format!("CAP_{name}")).collect();
        self
    }

    /// All capabilities that this process could have, all devices, nothing hidden.
    #[must_use]
    pub fn privileged(mut self) -> ContainerBuilder {
        self.privileged = true;
        let possible = bounding_set();
        let all = CAPABILITIES.split(' ').enumerate();
        let mine = all.filter(|(number, _)| possible >> number & 1 == 1).map(|(_, name)| name);
        self.capabilities(&mine.collect::<Vec<_>>())
    }

    /// Sees the machine's processes (`hostPID`).
    #[must_use]
    pub fn host_pid(mut self) -> ContainerBuilder {
        self.host_pid = true;
        self
    }

    /// Uses the machine's network (`hostNetwork`).
    #[must_use]
    pub fn host_network(mut self) -> ContainerBuilder {
        self.host_network = true;
        self
    }

    /// Nothing can be written but what is mounted for it (`readOnlyRootFilesystem`).
    #[must_use]
    pub fn read_only(mut self) -> ContainerBuilder {
        self.read_only = true;
        self
    }

    /// Its cgroup, by which pods are recognised, below the root of all cgroups.
    #[must_use]
    pub fn cgroup(mut self, path: impl Into<String>) -> ContainerBuilder {
        self.cgroup = Some(path.into());
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// Where there is no `runc`, or it refuses.
    pub fn start(mut self) -> Container {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("nvshare-test-{}-{number}", std::process::id());
        let bundle = TempDir::with_prefix("nvshare-container-").expect("a temporary directory");
        let shown = make_root(&bundle.path().join("rootfs"));
        let cgroups = Cgroups::new();
        self.cgroup.get_or_insert_with(|| cgroups.path(&name));
        let config = self.config(&name, shown);
        fs::write(bundle.path().join("config.json"), format!("{config:#}"))
            .expect("the container's configuration");
        let file = |what: &str| File::create(bundle.path().join(what)).expect("a file for its output");
        let mut command = runc(bundle.path());
        command
            .arg("run")
            .arg("--bundle")
            .arg(bundle.path())
            .arg("--pid-file")
            .arg(bundle.path().join("pid"));
        command.arg(&name).stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        die_with_parent(&mut command);
        let undertaker = undertaker(bundle.path(), &name);
        let runc = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut container = Container { name, bundle, runc, status: None, undertaker, _cgroups: cgroups };
        wait_for("the container starts", LIMIT, || {
            let ended = container.ended();
            if container.read("pid").trim().parse::<u32>().is_ok() {
                return Some(());
            }
            assert!(ended.is_none(), "runc made no container: {}", container.errors());
            None
        });
        container
    }

    fn config(&self, name: &str, shown: Vec<PathBuf>) -> Value {
        let plain = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        let mut mounts = vec![
            plain("/proc", "proc", &[]),
            plain("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
            plain("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
            plain("/sys", "sysfs", &["nosuid", "nodev", if self.privileged { "rw" } else { "ro" }]),
        ];
        if !self.read_only {
            mounts.push(plain("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777"]));
        }
        mounts.extend(shown.iter().map(|path| {
            json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "rprivate", "ro"] })
        }));
        mounts.extend(self.mounts.iter().cloned());
        let mut namespaces: Vec<_> =
            ["mount", "ipc", "uts", "cgroup"].map(|kind| json!({"type": kind})).into();
        if !self.host_pid {
            namespaces.push(json!({"type": "pid"}));
        }
        if !self.host_network {
            namespaces.push(json!({"type": "network"}));
        }
        let environment: Vec<String> = std::iter::once("PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned())
            .chain(self.environment.iter().map(|(name, value)| format!("{name}={value}")))
            .collect();
        let arguments: Vec<_> = self.arguments.iter().map(|argument| argument.to_string_lossy()).collect();
        let capabilities = &self.capabilities;
        let hidden: &[&str] =
            if self.privileged { &[] } else { &["/proc/kcore", "/proc/keys", "/sys/firmware"] };
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": arguments,
                "env": environment,
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
                "noNewPrivileges": !self.privileged,
            },
            "root": { "path": "rootfs", "readonly": self.read_only },
            "hostname": name,
            "mounts": mounts,
            "linux": {
                "namespaces": namespaces,
                "cgroupsPath": self.cgroup,
                "resources": { "devices": [{ "allow": self.privileged, "access": "rwm" }] },
                "maskedPaths": hidden,
            },
        })
    }
}

impl Container {
    /// The process id of its first process, as this machine counts.
    ///
    /// # Panics
    /// Where runc wrote none, which [`ContainerBuilder::start`] has seen.
    pub fn id(&self) -> u32 {
        self.read("pid").trim().parse().expect("runc's pid file")
    }

    /// What it wrote to its standard output so far.
    pub fn output(&self) -> String {
        self.read("stdout")
    }

    /// What it, or runc, wrote to its standard error so far.
    pub fn errors(&self) -> String {
        self.read("stderr")
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    /// Where the system cannot tell.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.runc.try_wait().expect("the state of runc");
        }
        self.status
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Where it makes no end.
    pub fn end(&mut self) -> ExitStatus {
        wait_for(&format!("container {} ends", self.name), LIMIT, || self.ended())
    }

    /// Waits for the end of a workload, and checks that it was a good one. Its report.
    ///
    /// # Panics
    /// Where it failed, or a byte was not what it should be.
    pub fn succeed(&mut self) -> Value {
        let status = self.end();
        let output = self.output();
        assert!(status.success(), "{} failed ({status}): {output}{}", self.name, self.errors());
        let report: Value = serde_json::from_str(&output).expect("a report");
        assert_eq!(report["data_errors"], 0, "{}: {report}", self.name);
        report
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut order) = self.undertaker.stdin.take() {
            let _ = order.write_all(b"\n");
        }
        let _ = self.undertaker.wait();
        let _ = self.runc.wait();
    }

    /// Asks its first process to stop in order, and waits.
    ///
    /// # Panics
    /// Where it makes no end.
    pub fn stop(&mut self) -> ExitStatus {
        let _ = runc(self.bundle.path()).args(["kill", &self.name, "TERM"]).status();
        self.end()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.bundle.path().join(file)).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // After its end too: runc keeps a container's state until it is deleted.
        self.kill();
        if std::thread::panicking() {
            eprintln!("{} wrote:\n{}{}", self.name, self.output(), self.errors());
        }
    }
}

/// The capabilities that a program started here can get, a bit for each.
fn bounding_set() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the state of this process");
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("a bounding set");
    u64::from_str_radix(set.trim(), 16).expect("a number")
}

/// A process that deletes the container when it is told to, or when this process dies, in whatever way: then it removes
/// what is left of the bundle and of the cgroups too.
fn undertaker(bundle: &Path, name: &str) -> Child {
    const SCRIPT: &str = "read -r order; told=$?; runc --root \"$1/state\" delete --force \"$2\" 2>/dev/null; \
                          test $told = 0 && exit; rm -rf \"$1\"; \
                          find /sys/fs/cgroup -depth -type d -path \"*/nvshare-test-$3-*\" -exec rmdir {} \\;";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, "undertaker"]).arg(bundle).arg(name).arg(std::process::id().to_string());
    // A group of its own: what ends the tests at a terminal does not end it.
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// runc with a directory of its own for what it remembers: nothing of this machine's is touched.
fn runc(bundle: &Path) -> Command {
    let mut command = Command::new("runc");
    command.arg("--root").arg(bundle.join("state"));
    command
}

/// Makes a root directory with nothing of its own. The directories of this machine that are to be shown in it.
fn make_root(root: &Path) -> Vec<PathBuf> {
    let make = |path: &Path| fs::create_dir_all(path).expect("a directory of the container");
    for name in ["dev", "etc", "proc", "run", "sys", "tmp", "var"] {
        make(&root.join(name));
    }
    let mut shown = Vec::new();
    for name in OF_THE_MACHINE {
        let path = Path::new("/").join(name);
        if let Ok(target) = fs::read_link(&path) {
            symlink(target, root.join(name)).expect("a link of the container");
        } else if path.is_dir() {
            make(&root.join(name));
            shown.push(path);
        }
    }
    shown
}
