//! NVIDIA's own library, of several releases: every function of the table is found in it, its code decoded, a cheap
//! place found, and every call counted. No GPU is needed: the functions answer that the driver is not initialised.

use nvshare_agent::observer::Library;
use nvshare_common::probe::{Call, PROBES, Probe};
use nvshare_testbed::nvidia_libraries;
use tempfile::TempDir;

use crate::client::Client;
use crate::seen::{named, observe};

/// Functions that came after the oldest release tested.
const NEWER: [&str; 20] = [
    "cuCtxSynchronize_v2",
    "cuCtxCreate_v4",
    "cuMemcpyBatchAsync",
    "cuMemcpyBatchAsync_ptsz",
    "cuMemcpy3DBatchAsync",
    "cuMemcpy3DBatchAsync_ptsz",
    "cuMemcpyBatchAsync_v2",
    "cuMemcpyBatchAsync_v2_ptsz",
    "cuMemcpy3DBatchAsync_v2",
    "cuMemcpy3DBatchAsync_v2_ptsz",
    "cuMemPrefetchBatchAsync",
    "cuMemPrefetchBatchAsync_ptsz",
    "cuMemDiscardBatchAsync",
    "cuMemDiscardBatchAsync_ptsz",
    "cuMemDiscardAndPrefetchBatchAsync",
    "cuMemDiscardAndPrefetchBatchAsync_ptsz",
    "cuMemBatchDecompressAsync",
    "cuMemBatchDecompressAsync_ptsz",
    "cuLaunchHostFunc_v2",
    "cuLaunchHostFunc_v2_ptsz",
];

#[test]
fn every_function_of_nvidias_library_is_found_probed_cheaply_and_counted() {
    let Some(libraries) = nvidia_libraries() else { return };
    for nvidia in libraries {
        // A file of our own: nobody else's probes are in it.
        let directory = TempDir::with_prefix("nvshare-nvidia-").unwrap();
        let path = directory.path().join("libcuda.so.1");
        std::fs::copy(nvidia.path(), &path).unwrap();
        let library = Library::open(&path).unwrap();
        let unexpected: Vec<&&str> = library.missing.iter().filter(|name| !NEWER.contains(name)).collect();
        assert!(unexpected.is_empty(), "{}: {unexpected:?}", nvidia.version);
        let slow: Vec<_> = library.points.iter().filter(|point| !point.emulated).collect();
        assert!(slow.is_empty(), "{}: single-stepped: {slow:?}", nvidia.version);

        // Nobody else's jumps are where the probes are.
        let own: Vec<_> = library.points.iter().filter(|point| !point.behind).collect();
        assert!(own.is_empty(), "{}: at their beginnings: {own:?}", nvidia.version);

        let Some(seen) = observe(&[&path]) else { return };
        let [attachment] = &seen.health().attachments[..] else { panic!("{:?}", seen.health()) };
        assert_eq!(attachment.functions as usize, library.points.len(), "{attachment:?}");
        let mut client = Client::start(&path);
        let mut expected = [0; Call::COUNT];
        // The driver writes where an argument on the stack says before it looks at anything: the client has none there.
        let callable =
            |probe: &&Probe| !library.missing.contains(&probe.symbol) && !probe.symbol.contains("BatchAsync");
        for probe in PROBES.iter().filter(callable) {
            client.run(&format!("call {} 3 2", probe.symbol));
            expected[probe.call as usize] += 6;
        }
        let pid = client.pid();
        client.end();
        let counts = seen.counts_of_dead(pid);
        assert_eq!(named(&counts.application), named(&expected), "{}", nvidia.version);
        let health = seen.health();
        assert_eq!((health.lost, health.unattributed), (0, 0));
        eprintln!("NVIDIA's {}: {} functions probed, all hits counted", nvidia.version, library.points.len());
    }
}
