//! The devices of this process and what they answer about themselves. Each is a card that all processes share.

use std::sync::OnceLock;

use cudarc::driver::sys::{CUdevice, CUresult};
use nvshare_sim_card::{Cards, FaultPlan, Lane, Member};

use crate::export::Outcome;

static CARD: OnceLock<Option<Member>> = OnceLock::new();

/// Compute capability: that of an H100.
pub(crate) const CAPABILITY: (i32, i32) = (9, 0);

/// Multiprocessors.
pub(crate) const MULTIPROCESSORS: i32 = 132;

/// Opens the cards; where there are none `cuInit` answers that there is no device.
pub(crate) fn open() -> Outcome {
    let opened = CARD.get_or_init(|| {
        let faults = std::env::var("NVSHARE_SIM_FAULTS").unwrap_or_default();
        let faults = match FaultPlan::parse(&faults) {
            Ok(faults) => faults,
            Err(error) => {
                eprintln!("nvshare-sim: {error}");
                return None;
            }
        };
        let joined = Cards::from_environment().and_then(|cards| cards.join(faults));
        joined.inspect_err(|error| eprintln!("nvshare-sim: {error}")).ok()
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
    Some(match attribute {
        1 | 2 | 3 | 39 => {
            if attribute == 39 {
                2048
            } else {
                1024
            }
        } // threads of a block, x, y, of a multiprocessor
        4 => 64,       // block z
        5 => i32::MAX, // grid x
        6 | 7 => 65535,
        8 => 49152,       // shared memory of a block
        9 => 65536,       // constant memory
        10 => 32,         // warp
        11 => i32::MAX,   // pitch
        12 | 82 => 65536, // registers
        13 => 1_980_000,  // kHz
        14 | 30 => 512,   // texture and surface alignment
        15 | 19 | 31 | 41 | 78 | 79 | 80 | 83 | 90 | 91 | 95 | 98 | 99 | 102 | 103 | 110 | 115 | 116
        | 122 | 123 | 125 | 129 => 1,
        16 => MULTIPROCESSORS,
        21 | 22 | 23 | 55 | 56 => 131_072,
        24..=26 => 16384,
        27 | 28 | 42..=44 | 47..=49 | 52 | 57..=60 | 63 | 64 | 66 | 67 | 73 | 74 | 77 => 32768,
        29 | 53 | 54 | 61 | 62 | 65 | 68 => 2046,
        33 => 1 + device as i32, // PCI bus
        36 => 2_619_000,         // memory clock in kHz
        37 => 5120,              // memory bus in bits
        38 => 50 << 20,          // second-level cache
        40 => 3,                 // copy engines
        51 => 32,                // pitch alignment of textures
        69..=72 => 1 << 27,
        75 => CAPABILITY.0,
        76 => CAPABILITY.1,
        81 => 233_472, // shared memory of a multiprocessor
        84 => 0,
        85 => device as i32,
        87 => 2,
        89 => 1, // concurrent managed access
        97 => crate::kernel::MAX_SHARED as i32,
        106 => 32, // blocks of a multiprocessor
        108 => 32 << 20,
        109 => 1 << 27,
        111 => 1024,
        119 => 1, // handles of pools: file descriptors
        120 => 1, // clusters
        126 => 4,
        131 | 134 => 0, // NUMA nodes
        17
        | 18
        | 20
        | 32
        | 34
        | 35
        | 45
        | 46
        | 50
        | 86
        | 88
        | 92..=94
        | 96
        | 100
        | 101
        | 104
        | 105
        | 107
        | 112..=114
        | 117
        | 118
        | 121
        | 124
        | 127
        | 128
        | 130
        | 132
        | 133
        | 135..=143 => 0,
        _ => return None,
    })
}
