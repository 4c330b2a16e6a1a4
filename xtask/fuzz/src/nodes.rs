//! The kernel's texts about processes, in which names chosen by the processes stand.

use nvshare_agent::observer::doors as observer;
use nvshare_agent::pods::cgroup::{self, Place};
use nvshare_agent::pods::doors as pods;

/// `/proc/PID/maps`, `cgroup` and `environ`.
pub(crate) fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for path in observer::maps(&text) {
        assert!(path.starts_with('/'), "{path}");
    }
    let place = Place::of_path(cgroup::path(&text));
    if let Some(container) = place.container {
        let _ = container.short();
    }
    for id in pods::environ(bytes) {
        assert!(!id.is_empty());
    }
}

/// One of each.
pub(crate) fn proc_seeds() -> Vec<Vec<u8>> {
    let container = "a".repeat(64);
    let uid = "4a6f2d3c-11aa-4f0e-9d7b-5f8f6c0b1e22";
    vec![
        b"7f10-7f20 r-xp 00000000 fe:01 77   /usr/lib/libcuda.so.550.1\n7f20-7f30 r--p 0 fe:01 78 /a b/libcuda.so (deleted)\n"
            .to_vec(),
        format!("12:devices:/kubepods/burstable/pod{uid}/{container}\n0::/system.slice/docker-{container}.scope\n")
            .into_bytes(),
        format!("0::/kubepods.slice/kubepods-pod{}.slice:cri-containerd:{container}\n", uid.replace('-', "_")).into_bytes(),
        b"PATH=/bin\0NVSHARE_DEVICE_IDS=GPU-1::0, GPU-1::2,\0\xff=\xff\0".to_vec(),
    ]
}
