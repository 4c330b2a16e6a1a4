//! The slots, read through a mapping: no system call tells who made how many calls.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{HashMap, MapData, Queue};
use nvshare_common::event::{GROUPS, Loss, SLOTS, Slot};
use nvshare_common::probe::Call;

const WORDS: usize = size_of::<Slot>() / 8;
const PLACES: usize = SLOTS + GROUPS;
const BYTES: usize = PLACES * size_of::<Slot>();

/// Of the slot's words, in the order of [`Slot`].
const TGID: usize = 0;
const FIRST: usize = 1;
const ENDED: usize = 4;
const GROUP: usize = 5;
const LOST: usize = 9;
const APPLICATION: usize = LOST + Loss::COUNT;
const ENGINE: usize = APPLICATION + Call::COUNT;

/// All slots. Slot 0 is nobody's; behind those of processes are those of groups.
pub(super) struct Slots {
    words: *const AtomicU64,
    owners: HashMap<MapData, u32, u32>,
    free: Queue<MapData, u32>,
    /// The programs live in this map; the mapping outlives its descriptor, but not the need for it.
    _map: MapData,
}

// SAFETY: the mapping is shared memory, read and written as atomics only.
unsafe impl Send for Slots {}

impl Slots {
    /// Maps the slots, and lays all but nobody's out as free.
    pub(super) fn new(
        map: MapData,
        owners: HashMap<MapData, u32, u32>,
        mut free: Queue<MapData, u32>,
    ) -> io::Result<Slots> {
        // SAFETY: a new shared mapping at an address of the kernel's choice, of a map with at least so many bytes (the
        // kernel refuses a longer one).
        let words = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                BYTES,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }?;
        for slot in 1..SLOTS as u32 {
            free.push(slot, 0).map_err(io::Error::other)?;
        }
        Ok(Slots { words: words.cast(), owners, free, _map: map })
    }

    fn word(&self, slot: u32, word: usize) -> &AtomicU64 {
        assert!((slot as usize) < PLACES && word < WORDS, "slot {slot}, word {word}");
        // SAFETY: within the mapping, aligned, and mapped until drop.
        unsafe { &*self.words.add(slot as usize * WORDS + word) }
    }

    /// A copy of a slot. Its words are of slightly different moments.
    pub(super) fn read(&self, slot: u32) -> Slot {
        let word = |index| self.word(slot, index).load(Ordering::Acquire);
        Slot {
            tgid: word(TGID),
            first: word(FIRST),
            last: word(2),
            last_launch: word(3),
            ended: word(ENDED),
            group: word(GROUP),
            lost: std::array::from_fn(|how| word(LOST + how)),
            application: std::array::from_fn(|call| word(APPLICATION + call)),
            engine: std::array::from_fn(|call| word(ENGINE + call)),
            // What the programs need for themselves.
            ..Slot::default()
        }
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
    /// must have been cut off from the slot when it replaced its program.
    pub(super) fn reclaim(&mut self, slot: u32) -> Slot {
        let tgid = self.word(slot, TGID).load(Ordering::Acquire) as u32;
        if self.owners.get(&tgid, 0).is_ok_and(|owned| owned == slot) {
            let _ = self.owners.remove(&tgid);
        }
        let last = self.read(slot);
        if (SLOTS..PLACES).contains(&(last.group as usize)) {
            self.word(last.group as u32, FIRST).fetch_sub(1, Ordering::AcqRel);
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

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`; references into it do not outlive `self`.
        let _ = unsafe { rustix::mm::munmap(self.words.cast_mut().cast(), BYTES) };
    }
}
