//! What `cargo xtask build` made, and where it lies.

use std::path::{Path, PathBuf};

/// The directory that holds the libraries and programs: `target/debug` or `target/release`.
#[derive(Clone, Debug)]
pub struct Artifacts {
    directory: PathBuf,
}

impl Artifacts {
    /// `NVSHARE_ARTIFACTS` if set, else the first directory above the running executable that holds the simulator.
    ///
    /// # Panics
    /// Where nothing was built yet.
    pub fn find() -> Artifacts {
        if let Some(directory) = std::env::var_os("NVSHARE_ARTIFACTS") {
            return Artifacts::at(directory);
        }
        let executable = std::env::current_exe().expect("the path of the running executable");
        // Cargo links some of them into `deps` as well, but not all.
        let complete =
            |directory: &&Path| directory.join("libcuda.so").is_file() && !directory.ends_with("deps");
        let directory = executable.ancestors().skip(1).find(complete);
        let Some(directory) = directory else {
            panic!("no libcuda.so in any directory above {}: run `cargo xtask build`", executable.display())
        };
        Artifacts::at(directory)
    }

    /// The artifacts in `directory`.
    pub fn at(directory: impl Into<PathBuf>) -> Artifacts {
        Artifacts { directory: directory.into() }
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The simulator's driver library.
    pub fn libcuda(&self) -> PathBuf {
        self.file("libcuda.so")
    }

    /// The simulator's NVML.
    pub fn nvml(&self) -> PathBuf {
        self.file("libnvidia_ml.so")
    }

    /// The shim.
    pub fn shim(&self) -> PathBuf {
        self.file("libnvshare.so")
    }

    /// The agent.
    pub fn agent(&self) -> PathBuf {
        self.file("nvshare-agent")
    }

    /// The workload.
    pub fn workload(&self) -> PathBuf {
        self.file("nvshare-workload")
    }

    /// The eBPF object; `None` where it was not built (no tool chain for it).
    pub fn ebpf(&self) -> Option<PathBuf> {
        let path = self.directory.join("nvshare.bpf.o");
        path.is_file().then_some(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        assert!(path.is_file(), "{} is missing: run `cargo xtask build`", path.display());
        path
    }
}
