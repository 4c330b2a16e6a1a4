//! The slots, read through a mapping: no system call tells who made how many calls.

#![expect(unsafe_code, reason = "the counts are mapped, and read as words shared with the kernel")]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{HashMap, MapData, Queue};
use nvshare_common::event::{self, FREQUENT, GROUPS, LANES, Lane, Loss, SLOTS, Slot};
use nvshare_common::probe::Call;

const WORDS: usize = size_of::<Slot>() / 8;
const PLACES: usize = SLOTS + GROUPS;
const LANE_WORDS: usize = size_of::<Lane>() / 8;

/// Of the slot's words.
const TGID: usize = offset_of!(Slot, tgid) / 8;
const FIRST: usize = offset_of!(Slot, first) / 8;
const ENDED: usize = offset_of!(Slot, ended) / 8;
const GROUP: usize = offset_of!(Slot, group) / 8;
const USED: usize = offset_of!(Slot, used) / 8;
const LOST: usize = offset_of!(Slot, lost) / 8;
const APPLICATION: usize = offset_of!(Slot, application) / 8;
const ENGINE: usize = offset_of!(Slot, engine) / 8;

/// Of a lane's.
const LAST: usize = offset_of!(Lane, last) / 8;
const LAST_LAUNCH: usize = offset_of!(Lane, last_launch) / 8;
const CALLS: usize = offset_of!(Lane, calls) / 8;

/// What a slot and its lanes say of a process, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// Its first call.
    pub first: u64,
    /// The last call of its application, to a tick of the kernel.
    pub last: u64,
    /// The last launch, to the same.
    pub last_launch: u64,
    /// When it replaced its program; 0 if it did not.
    pub ended: u64,
    /// Lost records.
    pub lost: [u64; Loss::COUNT],
    /// Calls of its application.
    pub application: [u64; Call::COUNT],
    /// Calls of the shim.
    pub engine: [u64; Call::COUNT],
}

/// Words that the programs and the agent share: a map's memory.
struct Shared {
    words: *const AtomicU64,
    count: usize,
    /// The programs live in this map; the mapping outlives its descriptor, but not the need for it.
    _map: MapData,
}

impl Shared {
    /// Maps so many words of a map, which has at least so many.
    fn new(map: MapData, count: usize) -> io::Result<Shared> {
        // SAFETY: a new shared mapping at an address of the kernel's choice (the kernel refuses one that is longer than
        // the map).
        let words = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                8 * count,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }?;
        Ok(Shared { words: words.cast(), count, _map: map })
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < self.count, "word {word} of {}", self.count);
        // SAFETY: within the mapping, aligned, and mapped until drop.
        unsafe { &*self.words.add(word) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`; references into it do not outlive `self`.
        let _ = unsafe { rustix::mm::munmap(self.words.cast_mut().cast(), 8 * self.count) };
    }
}

/// All slots. Slot 0 is nobody's; behind those of processes are those of groups.
pub(super) struct Slots {
    words: Shared,
    lanes: Shared,
    owners: HashMap<MapData, u32, u32>,
    free: Queue<MapData, u32>,
}

// SAFETY: the mappings are shared memory, read and written as atomics only.
unsafe impl Send for Slots {}

impl Slots {
    /// Maps the slots, and lays all but nobody's out as free.
    pub(super) fn new(
        slots: MapData,
        lanes: MapData,
        owners: HashMap<MapData, u32, u32>,
        mut free: Queue<MapData, u32>,
    ) -> io::Result<Slots> {
        let (words, lanes) =
            (Shared::new(slots, PLACES * WORDS)?, Shared::new(lanes, SLOTS * LANES * LANE_WORDS)?);
        for slot in 1..SLOTS as u32 {
            free.push(slot, 0).map_err(io::Error::other)?;
        }
        Ok(Slots { words, lanes, owners, free })
    }

    fn word(&self, slot: u32, word: usize) -> &AtomicU64 {
        assert!(word < WORDS, "word {word} of a slot");
        self.words.word(slot as usize * WORDS + word)
    }

    /// Its lanes that hold anything, each by where it begins.
    fn lanes(&self, slot: u32) -> impl Iterator<Item = usize> + use<> {
        let used = [USED, USED + 1].map(|word| self.word(slot, word).load(Ordering::Acquire).to_ne_bytes());
        let used = (0_u32..).zip(used.into_iter().flatten()).filter(|(_, used)| *used != 0);
        used.map(move |(lane, _)| event::lane(slot, lane) as usize * LANE_WORDS)
    }

    /// What a slot and its lanes say. Their words are of slightly different moments: each only grows.
    pub(super) fn read(&self, slot: u32) -> Sum {
        let word = |index| self.word(slot, index).load(Ordering::Acquire);
        let mut sum = Sum {
            first: word(FIRST),
            ended: word(ENDED),
            lost: std::array::from_fn(|how| word(LOST + how)),
            application: std::array::from_fn(|call| word(APPLICATION + call)),
            engine: std::array::from_fn(|call| word(ENGINE + call)),
            ..Sum::default()
        };
        for lane in self.lanes(slot) {
            let word = |index| self.lanes.word(lane + index).load(Ordering::Acquire);
            sum.last = sum.last.max(word(LAST));
            sum.last_launch = sum.last_launch.max(word(LAST_LAUNCH));
            for (index, call) in FREQUENT.iter().enumerate() {
                sum.application[*call as usize] += word(CALLS + index);
            }
        }
        sum
    }

    /// The next call of anybody wakes the observer.
    pub(super) fn sleep(&self) {
        self.word(0, FIRST).store(1, Ordering::SeqCst);
    }

    /// How many slots were handed out since the start: new ones are to be looked for when this changes.
    pub(super) fn handed_out(&self) -> u64 {
        self.word(0, TGID).load(Ordering::Acquire)
    }

    /// Every slot in use and its process.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (1..SLOTS as u32).filter_map(|slot| {
            let tgid = self.word(slot, TGID).load(Ordering::Acquire) as u32;
            (tgid != 0).then_some((slot, tgid))
        })
    }

    /// Takes the slot from its process, whose last counts these are, and makes it free. The process must be dead, or
    /// must have been cut off from the slot when it replaced its program: none of its threads counts any more.
    pub(super) fn reclaim(&mut self, slot: u32) -> Sum {
        let tgid = self.word(slot, TGID).load(Ordering::Acquire) as u32;
        if self.owners.get(&tgid, 0).is_ok_and(|owned| owned == slot) {
            let _ = self.owners.remove(&tgid);
        }
        let last = self.read(slot);
        let group = self.word(slot, GROUP).load(Ordering::Acquire) as usize;
        if (SLOTS..PLACES).contains(&group) {
            self.word(group as u32, FIRST).fetch_sub(1, Ordering::AcqRel);
        }
        for lane in self.lanes(slot) {
            (0..LANE_WORDS).for_each(|word| self.lanes.word(lane + word).store(0, Ordering::Release));
        }
        for word in 0..WORDS {
            self.word(slot, word).store(0, Ordering::Release);
        }
        if let Err(error) = self.free.push(slot, 0) {
            tracing::warn!(slot, %error, "a slot is lost: it cannot be put back among the free ones");
        }
        // There is room again: the next time there is none is worth a word.
        self.word(0, ENDED).store(0, Ordering::Release);
        last
    }
}
