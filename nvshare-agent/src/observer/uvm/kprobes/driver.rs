//! Which of NVIDIA's kernel modules is loaded, and whether its events can be read.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nvshare_common::uvm::Layout;

/// A loaded module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::observer::uvm) struct Driver {
    pub(in crate::observer::uvm) layout: Layout,
    version: String,
    /// Its directory, another one after it was loaded again: then its probes are gone.
    directory: u64,
}

/// Why managed memory is not observed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::observer::uvm) enum Why {
    #[error("the module nvidia_uvm is not loaded")]
    NoModule,
    #[error("events of the module are only known on x86-64")]
    Architecture,
    #[error("cannot read the driver's version in {0}: {1}")]
    Version(String, String),
    #[error(
        "driver {0}: nobody has looked at where this version keeps its events; a newer agent may know (known: 515 to 595)"
    )]
    Unknown(String),
    #[error("this kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)")]
    NoKprobes,
    #[error("cannot load the eBPF program `{0}`: {1}")]
    Load(&'static str, String),
    #[error(
        "cannot attach to {0}: {1} (no such function in this driver, no CAP_PERFMON, or the kernel is locked down)"
    )]
    Attach(&'static str, String),
}

/// Looks below `modules` (`/sys/module`).
pub(super) fn look(modules: &Path) -> Result<Driver, Why> {
    let Ok(directory) = modules.join("nvidia_uvm").metadata() else { return Err(Why::NoModule) };
    if !cfg!(target_arch = "x86_64") {
        return Err(Why::Architecture);
    }
    let file = modules.join("nvidia/version");
    let wrong = |error: io::Error| Why::Version(file.display().to_string(), error.to_string());
    let version = std::fs::read_to_string(&file).map_err(wrong)?.trim().to_owned();
    let layout = Layout::of_version(&version).ok_or_else(|| Why::Unknown(version.clone()))?;
    Ok(Driver { layout, version, directory: directory.ino() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn modules(version: Option<&str>) -> TempDir {
        let modules = TempDir::with_prefix("nvshare-modules-").unwrap();
        std::fs::create_dir(modules.path().join("nvidia_uvm")).unwrap();
        if let Some(version) = version {
            std::fs::create_dir(modules.path().join("nvidia")).unwrap();
            std::fs::write(modules.path().join("nvidia/version"), version).unwrap();
        }
        modules
    }

    #[test]
    fn without_the_module_nothing_is_wrong_with_the_version() {
        assert_eq!(look(Path::new("/nonexistent")), Err(Why::NoModule));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_known_version_gives_its_layout_and_others_their_name() {
        let known = modules(Some("550.54.15\n"));
        assert_eq!(Some(look(known.path()).unwrap().layout), Layout::of_version("550.54.15"));
        let unknown = modules(Some("999.1.2\n"));
        assert_eq!(look(unknown.path()), Err(Why::Unknown("999.1.2".to_owned())));
        assert!(matches!(look(modules(None).path()), Err(Why::Version(..))));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_module_that_was_loaded_again_is_another_one() {
        let modules = modules(Some("550.54.15\n"));
        let before = look(modules.path()).unwrap();
        assert_eq!(look(modules.path()), Ok(before.clone()));
        std::fs::create_dir(modules.path().join("again")).unwrap();
        std::fs::rename(modules.path().join("again"), modules.path().join("nvidia_uvm")).unwrap();
        assert_ne!(look(modules.path()), Ok(before));
    }
}
