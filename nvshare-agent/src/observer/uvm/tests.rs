//! The programs in this machine's kernel: verified, and the maps read as the agent does.

use std::collections::HashMap;

use tempfile::TempDir;

use super::*;
use crate::proc;

/// The object in the kernel, nothing of it loaded; `None`, said loudly, where that cannot be.
fn object() -> Option<Ebpf> {
    let object = nvshare_testbed::Artifacts::find().ebpf();
    if object.is_none() || !nvshare_testbed::is_root() {
        eprintln!("SKIPPED: no nvshare.bpf.o, or not root: nothing about the kprobes was tested");
        return None;
    }
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
    Some(Ebpf::load(&std::fs::read(object?).unwrap()).unwrap())
}

/// One version of each row of the table.
const VERSIONS: [&str; 4] = ["515.105.01", "535.261.03", "550.54.15", "580.159.04"];

#[test]
fn the_kernel_verifies_the_programs_whatever_the_driver() {
    for version in VERSIONS {
        let Some(mut ebpf) = object() else { return };
        let modules = TempDir::with_prefix("nvshare-modules-").unwrap();
        for name in ["nvidia", "nvidia_uvm"] {
            std::fs::create_dir(modules.path().join(name)).unwrap();
        }
        std::fs::write(modules.path().join("nvidia/version"), version).unwrap();
        let mut uvm = Uvm::new(&mut ebpf, modules.path()).unwrap();
        uvm.look(&mut ebpf);
        assert!(uvm.loaded, "{version}: {:?}", uvm.why);
        // No module here has the functions, or the kernel has no kprobes.
        if !Path::new("/sys/module/nvidia_uvm").exists() {
            assert!(matches!(uvm.why, Some(Why::NoKprobes | Why::Attach(..))), "{version}: {:?}", uvm.why);
            assert!(!uvm.health().observed);
        }
    }
}

#[test]
fn a_probe_on_an_ordinary_function_of_the_kernel_attaches() {
    let Some(mut ebpf) = object() else { return };
    if !Path::new(KPROBES).exists() {
        eprintln!("SKIPPED: this kernel has no kprobes");
        return;
    }
    let program = program(&mut ebpf, "uvm_space_ends").unwrap();
    program.load().unwrap();
    program.attach("do_exit", 0).unwrap();
}

#[test]
fn sums_are_told_once_and_the_dead_are_forgotten() {
    let Some(mut ebpf) = object() else { return };
    let mut maps = Maps::take(&mut ebpf).unwrap();
    let this = proc::process(std::process::id()).unwrap();
    let nobody = u32::MAX;
    let mut told = HashMap::new();
    let mut read = |maps: &mut Maps, known: Option<Process>| {
        let mut tell = Vec::new();
        maps.read(&mut told, |pid| known.filter(|known| known.pid == pid), &mut tell);
        tell
    };
    let added = |faults, to_device, to_host| {
        let what = What::Uvm { faults, to_device: Bytes(to_device), to_host: Bytes(to_host) };
        Seen::Process(Observation { process: this, what })
    };
    maps.usage.insert(this.pid, [3, 4096, 0], 0).unwrap();
    maps.usage.insert(nobody, [1, 1, 1], 0).unwrap();
    assert_eq!(read(&mut maps, None), [], "nobody knows them yet");
    assert!(maps.usage.get(&nobody, 0).is_err(), "it is dead");
    assert_eq!(read(&mut maps, Some(this)), [added(3, 4096, 0)]);
    assert_eq!(read(&mut maps, Some(this)), []);
    maps.usage.insert(this.pid, [5, 4096, 8192], 0).unwrap();
    assert_eq!(read(&mut maps, Some(this)), [added(2, 0, 8192)]);
    maps.losses.set(0, [1, 2, 3], 0).unwrap();
    assert_eq!(maps.losses(), Losses { unknown: 1, refused: 2, unreadable: 3 });
}
