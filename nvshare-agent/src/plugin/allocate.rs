//! What a container gets with its shares: the agent's socket directory, the library and the way it is preloaded, and an
//! environment that names its GPUs. Pure functions.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nvshare_common::protocol;

use super::api::{CdiDevice, ContainerAllocateResponse, Mount};
use super::cdi;
use super::devices::{NoShare, Roster, Share};
use super::options::Preload;

/// Where containers see the library's directory, and where it is on the node unless configured otherwise. A symbolic
/// link on the node: a container that starts after an upgrade gets the new library, one that runs keeps its own.
pub const LIBRARY_DIRECTORY: &str = "/var/lib/nvshare/current";
/// The library, in that directory.
pub const LIBRARY: &str = "libnvshare.so";
/// What becomes `/etc/ld.so.preload`, in that directory.
pub const PRELOAD_FILE: &str = "ld.so.preload";
/// In the environment of a container: its shares, separated by commas. The agent knows the pod by them.
pub const DEVICE_IDS: &str = "NVSHARE_DEVICE_IDS";
/// Names its GPUs to NVIDIA's container runtime.
pub const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// `LD_PRELOAD` with [`Preload::Env`]. The loader of glibc puts its own directory for `$LIB`; musl's does not know `$LIB`
/// and ignores a file that is not there, where one that is there and needs glibc ends every program with status 127.
const LD_PRELOAD: &str = "/var/lib/nvshare/lib/$LIB/libnvshare.so";
/// What `$LIB` can stand for: Debian's directories, those of Red Hat and SUSE, and glibc as it comes.
const LIB_VARIANTS: [&str; 3] = [
    if cfg!(target_arch = "aarch64") { "lib/aarch64-linux-gnu" } else { "lib/x86_64-linux-gnu" },
    "lib64",
    "lib",
];

/// What is handed to containers.
#[derive(Clone, Debug)]
pub struct Hand {
    /// The clients' socket.
    pub socket: PathBuf,
    /// The library's directory on the node.
    pub library: PathBuf,
    /// How it is preloaded.
    pub preload: Preload,
}

/// An allocation that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// No share.
    #[error(transparent)]
    NoShare(#[from] NoShare),
    /// No such GPU or share.
    #[error(
        "there is no {share}: this node's GPUs have {shares} shares each (--shares), and no other GPU was seen"
    )]
    Unknown {
        /// What was asked for.
        share: String,
        /// How many there are.
        shares: u32,
    },
}

impl Hand {
    /// What a container gets with the shares `ids`.
    pub fn give(&self, ids: &[String], roster: &Roster) -> Result<ContainerAllocateResponse, AllocateError> {
        let mut gpus = BTreeSet::new();
        for id in ids {
            let share: Share = id.parse()?;
            if !roster.has(&share) {
                return Err(AllocateError::Unknown { share: id.clone(), shares: roster.shares() });
            }
            gpus.insert(share.gpu);
        }
        let gpus: Vec<String> = gpus.into_iter().collect();
        let mut envs = vec![(DEVICE_IDS, ids.join(",")), (VISIBLE_DEVICES, gpus.join(","))];
        if self.preload == Preload::Env {
            envs.push(("LD_PRELOAD", LD_PRELOAD.to_owned()));
        }
        if let Some(socket) = self.unusual_socket() {
            envs.push(("NVSHARE_SOCKET", socket));
        }
        let mut response = ContainerAllocateResponse {
            envs: envs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            ..ContainerAllocateResponse::default()
        };
        match self.preload {
            // The runtime adds the mounts, by the specification.
            Preload::Cdi => response.cdi_devices.push(CdiDevice { name: cdi::device_name() }),
            Preload::LdSoPreload | Preload::Env => response.mounts = self.mounts(),
        }
        Ok(response)
    }

    /// Files and directories of the node, all read-only: a container that could write to the socket's directory could
    /// put its own socket in the agent's place.
    pub fn mounts(&self) -> Vec<Mount> {
        let read_only = |container: &Path, host: &Path| Mount {
            container_path: container.display().to_string(),
            host_path: host.display().to_string(),
            read_only: true,
        };
        let directory = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
        // A directory, not the socket: a mounted socket goes stale when the agent restarts.
        let mut mounts = vec![read_only(&directory(Path::new(protocol::SOCKET)), &directory(&self.socket))];
        if self.preload == Preload::Env {
            let library = self.library.join(LIBRARY);
            mounts.extend(
                LIB_VARIANTS
                    .iter()
                    .map(|variant| read_only(Path::new(&LD_PRELOAD.replace("$LIB", variant)), &library)),
            );
        } else {
            mounts.push(read_only(Path::new(LIBRARY_DIRECTORY), &self.library));
            mounts.push(read_only(Path::new("/etc/ld.so.preload"), &self.library.join(PRELOAD_FILE)));
        }
        mounts
    }

    /// Where a container finds the agent, if that is not where the library looks by itself.
    fn unusual_socket(&self) -> Option<String> {
        let usual = Path::new(protocol::SOCKET);
        let path = usual.with_file_name(self.socket.file_name()?);
        (path != usual).then(|| path.display().to_string())
    }
}

/// What [`PRELOAD_FILE`] says: the library as containers see it.
pub fn preload_line() -> String {
    format!("{LIBRARY_DIRECTORY}/{LIBRARY}\n")
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::snapshot::{self, State};

    use super::*;

    fn roster() -> Roster {
        let mut roster = Roster::new(4);
        let device = |uuid: &str| snapshot::Device { uuid: uuid.to_owned(), ..snapshot::Device::default() };
        let state = State { devices: vec![device("GPU-a"), device("GPU-b")], ..State::default() };
        roster.list(&state, std::time::Duration::ZERO, true);
        roster
    }

    fn given(preload: Preload, socket: &str, ids: &[&str]) -> ContainerAllocateResponse {
        let hand = Hand { socket: socket.into(), library: "/opt/nvshare/current".into(), preload };
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        hand.give(&ids, &roster()).unwrap()
    }

    fn shown(response: &ContainerAllocateResponse) -> Vec<String> {
        assert!(response.mounts.iter().all(|mount| mount.read_only));
        response
            .mounts
            .iter()
            .map(|mount| format!("{} <- {}", mount.container_path, mount.host_path))
            .collect()
    }

    #[test]
    fn a_container_gets_the_socket_directory_the_library_and_an_ld_so_preload_read_only() {
        let response = given(Preload::LdSoPreload, protocol::SOCKET, &["GPU-a::3"]);
        assert_eq!(
            shown(&response),
            [
                "/run/nvshare <- /run/nvshare",
                "/var/lib/nvshare/current <- /opt/nvshare/current",
                "/etc/ld.so.preload <- /opt/nvshare/current/ld.so.preload",
            ]
        );
        assert_eq!(preload_line(), "/var/lib/nvshare/current/libnvshare.so\n");
        let envs: Vec<_> = response.envs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(envs, ["NVIDIA_VISIBLE_DEVICES=GPU-a", "NVSHARE_DEVICE_IDS=GPU-a::3"]);
        assert!(response.cdi_devices.is_empty());
    }

    #[test]
    fn every_gpu_is_visible_once_whatever_its_shares() {
        let response = given(Preload::LdSoPreload, protocol::SOCKET, &["GPU-b::0", "GPU-a::1", "GPU-b::2"]);
        assert_eq!(response.envs["NVIDIA_VISIBLE_DEVICES"], "GPU-a,GPU-b");
        assert_eq!(response.envs["NVSHARE_DEVICE_IDS"], "GPU-b::0,GPU-a::1,GPU-b::2");
    }

    #[test]
    fn with_ld_preload_the_library_is_wherever_lib_may_point() {
        let response = given(Preload::Env, protocol::SOCKET, &["GPU-a::0"]);
        assert_eq!(response.envs["LD_PRELOAD"], "/var/lib/nvshare/lib/$LIB/libnvshare.so");
        let shown = shown(&response);
        for variant in LIB_VARIANTS {
            let file =
                format!("/var/lib/nvshare/lib/{variant}/libnvshare.so <- /opt/nvshare/current/libnvshare.so");
            assert!(shown.contains(&file), "no {file} in {shown:?}");
        }
        assert!(!shown.iter().any(|mount| mount.contains("ld.so.preload")));
    }

    #[test]
    fn with_cdi_the_runtime_mounts() {
        let response = given(Preload::Cdi, protocol::SOCKET, &["GPU-a::0"]);
        assert!(response.mounts.is_empty());
        assert_eq!(response.cdi_devices, [CdiDevice { name: "nvshare.com/gpu=share".into() }]);
    }

    #[test]
    fn an_agent_at_an_unusual_place_is_found() {
        let response = given(Preload::LdSoPreload, "/srv/x/a.sock", &["GPU-a::0"]);
        assert_eq!(shown(&response)[0], "/run/nvshare <- /srv/x");
        assert_eq!(response.envs["NVSHARE_SOCKET"], "/run/nvshare/a.sock");
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let hand = Hand {
            socket: protocol::SOCKET.into(),
            library: LIBRARY_DIRECTORY.into(),
            preload: Preload::LdSoPreload,
        };
        for id in ["GPU-c::0", "GPU-a::4", "0"] {
            let error = hand.give(&[id.to_owned()], &roster()).unwrap_err().to_string();
            assert!(error.contains(id) && error.contains("share"), "{error}");
        }
    }
}
