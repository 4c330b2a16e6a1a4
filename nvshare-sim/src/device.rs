//! The devices of this process and what they answer about themselves. Each is a card that all processes share.

use std::sync::OnceLock;

use cudarc::driver::sys::{CUdevice, CUresult};
use nvshare_sim_card::{Cards, FaultPlan, Lane, Member};

use crate::call::Outcome;

static CARD: OnceLock<Option<Member>> = OnceLock::new();

/// Compute capability: that of an H100.
pub(crate) const CAPABILITY: (i32, i32) = (9, 0);

/// Multiprocessors.
pub(crate) const MULTIPROCESSORS: i32 = 132;

/// The most shared memory of a block, as an H100 has it.
pub(crate) const MAX_SHARED: u32 = 232_448;

/// Opens the cards; where there are none `cuInit` answers that there is no device. Faults can be asked for of functions that
/// `can_fail`.
pub(crate) fn open(can_fail: impl Fn(&str) -> bool) -> Outcome {
    let opened = CARD.get_or_init(|| {
        let said = |error| eprintln!("nvshare-sim: {error}");
        let cards = Cards::from_environment().map_err(said).ok()?;
        let faults = std::env::var("NVSHARE_SIM_FAULTS").unwrap_or_default();
        // Written down, too: a test that looks for complaints is not to pass because a program does without a device.
        let faults = FaultPlan::parse(&faults, can_fail).map_err(|error| cards.violation(error)).ok()?;
        cards.join(faults).map_err(said).ok()
    });
    opened.as_ref().map(|_| ()).ok_or(CUresult::CUDA_ERROR_NO_DEVICE)
}

/// This process's use of the cards. Only after `cuInit`.
pub(crate) fn card() -> &'static Member {
    CARD.get().and_then(Option::as_ref).expect("the driver is initialised")
}

/// How many there are.
pub(crate) fn count() -> usize {
    card().config().cards as usize
}

/// The index of a device that exists.
pub(crate) fn index(device: CUdevice) -> Outcome<usize> {
    usize::try_from(device).ok().filter(|index| *index < count()).ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE)
}

/// Reserves a lane for `nanoseconds` from `earliest` on, and counts the bytes that pass it; returns the end.
pub(crate) fn reserve(device: usize, lane: Lane, earliest: u64, nanoseconds: u64, bytes: u64) -> u64 {
    card().count_copy(device, lane, bytes);
    card().reserve(device, lane, earliest, nanoseconds)
}

/// Bytes per second of a lane.
pub(crate) fn rate(lane: Lane) -> u64 {
    match lane {
        Lane::Compute => card().config().device_bytes_per_second,
        Lane::ToDevice | Lane::ToHost => card().config().link_bytes_per_second,
    }
}

/// What a copy over the link costs beyond its bytes, in nanoseconds.
pub(crate) fn latency() -> u64 {
    card().config().link_latency_nanoseconds
}

/// An attribute; `None` for a number that this driver does not know.
pub(crate) fn attribute(device: usize, attribute: u32) -> Option<i32> {
    const PCI_BUS: u32 = 33;
    const BOARD_GROUP: u32 = 85;
    match attribute {
        PCI_BUS => Some(1 + device as i32),
        BOARD_GROUP => Some(device as i32),
        1..=143 => Some(
            ATTRIBUTES.iter().find(|(numbers, _)| numbers.contains(&attribute)).map_or(0, |found| found.1),
        ),
        _ => None,
    }
}

/// Attributes that are not 0: an H100's, as far as they make sense here. Those of host memory behind device addresses
/// (`HOST_NUMA`, 141) and of sparse arrays are 0: not supported.
const ATTRIBUTES: &[(&[u32], i32)] = &[
    // Threads of a block, its x and y; z; threads of a multiprocessor.
    (&[1, 2, 3], 1024),
    (&[4], 64),
    (&[39], 2048),
    // The grid's x; y and z.
    (&[5], i32::MAX),
    (&[6, 7], 65535),
    // Shared memory of a block, with its consent, of a multiprocessor, and what the driver keeps of it.
    (&[8], 49152),
    (&[97], MAX_SHARED as i32),
    (&[81], 233_472),
    (&[111], 1024),
    // Constant memory; warp; pitch; registers of a block and of a multiprocessor; blocks of a multiprocessor.
    (&[9], 65536),
    (&[10], 32),
    (&[11], i32::MAX),
    (&[12, 82], 65536),
    (&[106], 32),
    // Clocks in kHz, the memory bus in bits, the second-level cache and how much of it persists.
    (&[13], 1_980_000),
    (&[36], 2_619_000),
    (&[37], 5120),
    (&[38], 50 << 20),
    (&[108], 32 << 20),
    (&[109], 1 << 27),
    // Multiprocessors, copy engines, compute capability, synchronisation domains.
    (&[16], MULTIPROCESSORS),
    (&[40], 3),
    (&[75], CAPABILITY.0),
    (&[76], CAPABILITY.1),
    (&[126], 4),
    // Alignments of textures and surfaces, and of their pitch.
    (&[14, 30], 512),
    (&[51], 32),
    // Sizes of textures and surfaces.
    (&[21, 22, 56], 131_072),
    (&[23, 57], 65536),
    (&[24, 25, 26, 47, 48, 49, 58, 59, 60], 16384),
    (&[27, 28, 42, 45, 46, 52, 53, 55, 61, 63, 64, 66, 67, 73, 74, 77], 32768),
    (&[29, 43, 62, 65], 2048),
    (&[54, 68], 2046),
    (&[69, 70, 71, 72], 1 << 27),
    // What it can do: overlap, host memory, kernels side by side, unified addresses, priorities, caches, managed memory
    // (concurrently with the host), preemption, registered memory by its own address, cooperative launches, flushing,
    // registration, virtual memory management (102) with file descriptors (103) and RDMA (110), pools, RDMA, stream memory
    // operations, arrays whose mapping is deferred, IPC events, function pointers, clusters.
    (
        &[
            15, 19, 31, 41, 78, 79, 80, 83, 89, 90, 91, 95, 98, 99, 102, 103, 110, 115, 116, 119, 120, 121,
            122, 123, 125, 129,
        ],
        1,
    ),
    // Single to double precision.
    (&[87], 2),
];
