//! The kernels that the simulator can run, known by name. They do their work for real, in the compute clock's time. All
//! parameters are numbers of 64 bits; the launch's dimensions do not matter.

#![expect(unsafe_code, reason = "the device's memory, found accessible")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cudarc::driver::sys::CUresult;
use nvshare_common::fingerprint::{Fingerprint, Key, fingerprint};
use nvshare_sim_card::{Lane, now};

use super::kernel::Launch;
use crate::call::Outcome;
use crate::flight::Touch;
use crate::memory::{self, Location};
use crate::strict;
use crate::timeline::Timeline;

/// What a launch costs beyond its work, in nanoseconds.
const LAUNCH: u64 = 2_000;

/// One of the known kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Builtin {
    /// `(ptr, words, seed, first)`: word i := mix(seed, first + i).
    Fill,
    /// `(ptr, words, add)`: word += add.
    Step,
    /// `(ptr, words, seed, first, added, result)`: *result += words that are not mix(seed, first + i) + added.
    Verify,
    /// `(ptr, words, result)`: *result += the sum of all words.
    Sum,
    /// `(ptr, words, value)`: word := value.
    Store,
    /// `(nanoseconds)`.
    Spin,
    /// `(ptr, words, value, nanoseconds)`: spins, then stores.
    StoreLate,
    /// `(flag)`: spins until the 32-bit word there is not zero.
    WaitFlag,
    /// `(base, blocks, block_bytes, key, out)`: fingerprints of blocks.
    Fingerprint,
}

impl Builtin {
    /// The kernel of this name.
    pub(crate) fn by_name(name: &str) -> Option<Builtin> {
        Some(match name {
            "nvshare_fill" => Builtin::Fill,
            "nvshare_step" => Builtin::Step,
            "nvshare_verify" => Builtin::Verify,
            "nvshare_sum" => Builtin::Sum,
            "nvshare_store" => Builtin::Store,
            "nvshare_spin" => Builtin::Spin,
            "nvshare_store_late" => Builtin::StoreLate,
            "nvshare_wait_flag" => Builtin::WaitFlag,
            "nvshare_fingerprint" => Builtin::Fingerprint,
            _ => return None,
        })
    }

    /// The memory that a launch may touch.
    pub(crate) fn touches(self, launch: &Launch) -> Vec<Touch> {
        let number = |index| launch.number(index);
        let touch = |start, bytes, write| Touch { start, bytes, write };
        let words = |write| touch(number(0), number(1).saturating_mul(8), write);
        match self {
            Builtin::Fill | Builtin::Step | Builtin::Store | Builtin::StoreLate => vec![words(true)],
            Builtin::Verify => vec![words(false), touch(number(5), 8, true)],
            Builtin::Sum => vec![words(false), touch(number(2), 8, true)],
            Builtin::Spin => Vec::new(),
            Builtin::WaitFlag => vec![touch(number(0), 4, false)],
            Builtin::Fingerprint => vec![
                touch(number(0), number(1).saturating_mul(number(2)), false),
                touch(number(3), 32, false),
                touch(number(4), number(1).saturating_mul(size_of::<Fingerprint>() as u64), true),
            ],
        }
    }

    /// Runs a launch.
    pub(crate) fn run(self, launch: &Launch, timeline: &mut Timeline<'_>) -> Outcome {
        timeline.pass(LAUNCH);
        if matches!(self, Builtin::StoreLate) {
            timeline.spin(launch.number(3))?;
        }
        for touch in self.touches(launch) {
            reach(launch, timeline, &touch)?;
        }
        let number = |index| launch.number(index);
        let (start, words) = (number(0), number(1));
        match self {
            Builtin::Fill => {
                let (seed, first) = (number(2), number(3));
                over(timeline, start, words, true, |index, piece| {
                    let first = first.wrapping_add(index);
                    for (index, word) in piece.iter_mut().enumerate() {
                        *word = mix(seed, first.wrapping_add(index as u64));
                    }
                })
            }
            Builtin::Step => {
                let add = number(2);
                over(timeline, start, words, true, |_, piece| {
                    for word in piece {
                        *word = word.wrapping_add(add);
                    }
                })
            }
            Builtin::Verify => {
                let (seed, first, added) = (number(2), number(3), number(4));
                let mut wrong = 0;
                over(timeline, start, words, false, |index, piece| {
                    let first = first.wrapping_add(index);
                    let differs = |(index, word): (usize, &u64)| {
                        u64::from(*word != mix(seed, first.wrapping_add(index as u64)).wrapping_add(added))
                    };
                    wrong += piece.iter().enumerate().map(differs).sum::<u64>();
                })?;
                add_to(number(5), wrong);
                Ok(())
            }
            Builtin::Sum => {
                let mut sum = 0_u64;
                over(timeline, start, words, false, |_, piece| {
                    sum = piece.iter().fold(sum, |sum, word| sum.wrapping_add(*word));
                })?;
                add_to(number(2), sum);
                Ok(())
            }
            Builtin::Store | Builtin::StoreLate => {
                let value = number(2);
                over(timeline, start, words, true, |_, piece| piece.fill(value))
            }
            Builtin::Spin => timeline.spin(start),
            Builtin::WaitFlag => wait_flag(timeline, start),
            Builtin::Fingerprint => fingerprints(timeline, [0, 1, 2, 3, 4].map(number)),
        }
    }
}

/// splitmix64 of a seed and a place: what `nvshare_fill` writes.
const fn mix(seed: u64, n: u64) -> u64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = (seed ^ n.wrapping_mul(GOLDEN)).wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Checks that the kernel may touch the memory; where it may not, the error is for good.
fn reach(launch: &Launch, timeline: &Timeline<'_>, touch: &Touch) -> Outcome {
    if touch.bytes == 0 {
        return Ok(());
    }
    let name = &launch.function.name;
    let complaint = |why: &str| {
        let verb = if touch.write { "writes" } else { "reads" };
        format!("kernel `{name}` {verb} {:#x}+{}: {why}", touch.start, touch.bytes)
    };
    let illegal = |why: &str| strict::illegal(&complaint(why));
    if memory::needs_peer_access(touch.start, timeline.context) {
        return Err(illegal("memory of another device, and no peer access was enabled"));
    }
    if memory::classify(touch.start) == Location::Pageable {
        return Err(illegal("not memory that a device can reach"));
    }
    if !touch.start.is_multiple_of(touch.bytes.min(8)) {
        strict::report(&complaint("the address is not aligned"));
        return Err(CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
    }
    memory::access(touch.start, touch.bytes, touch.write, timeline.context.device)
        .map_err(|why| illegal(&why))
}

/// Goes over an array in pieces, in the compute clock's time. `each` gets the index of the piece's first word.
fn over(
    timeline: &mut Timeline<'_>,
    start: u64,
    words: u64,
    write: bool,
    mut each: impl FnMut(u64, &mut [u64]),
) -> Outcome {
    let device = timeline.context.device;
    let managed = memory::classify(start) == Location::Managed;
    timeline.occupy(device, Lane::Compute, words.saturating_mul(8), 1, |timeline, range| {
        let (address, bytes) = (start + range.start, range.end - range.start);
        if managed {
            timeline.at = memory::touch_managed(device, address, bytes, write, timeline.at);
        }
        // SAFETY: `reach` found the range accessible and aligned, and freeing or unmapping it waits for work in flight.
        // That others touch it at the same time is a race of the application's, as it would be on a device.
        let piece = unsafe { std::slice::from_raw_parts_mut(address as *mut u64, (bytes / 8) as usize) };
        each(range.start / 8, piece);
    })
}

fn add_to(address: u64, value: u64) {
    if value != 0 {
        // SAFETY: `reach` found the word accessible and aligned; kernels and hosts use it with atomic operations.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }.fetch_add(value, Ordering::SeqCst);
    }
}

fn wait_flag(timeline: &mut Timeline<'_>, address: u64) -> Outcome {
    loop {
        timeline.check()?;
        // SAFETY: as for `add_to`.
        if unsafe { AtomicU32::from_ptr(address as *mut u32) }.load(Ordering::SeqCst) != 0 {
            timeline.at = timeline.at.max(now());
            return Ok(());
        }
        timeline.at = now() + 100_000;
        timeline.sleep();
    }
}

fn fingerprints(timeline: &mut Timeline<'_>, [base, blocks, block_bytes, key, out]: [u64; 5]) -> Outcome {
    // SAFETY: `reach` found the four words accessible and aligned.
    let words = unsafe { (key as *const [u64; 4]).read() };
    let Some(key) = Key::from_words(words) else {
        strict::report("kernel `nvshare_fingerprint`: a word of the key is not less than 2^61-1");
        return Err(CUresult::CUDA_ERROR_LAUNCH_FAILED);
    };
    let device = timeline.context.device;
    for block in 0..blocks {
        // One block is one piece: it is hashed after its bytes' time was reserved.
        timeline.occupy(device, Lane::Compute, block_bytes, 1, |_, _| {})?;
        let start = base + block * block_bytes;
        // SAFETY: `reach` found all blocks and results accessible and aligned.
        unsafe {
            let bytes = std::slice::from_raw_parts(start as *const u8, block_bytes as usize);
            (out as *mut Fingerprint).add(block as usize).write(fingerprint(&key, bytes));
        }
    }
    Ok(())
}
