//! What the eBPF programs write and the agent reads: the slots in which calls are counted, the records of the ring
//! buffer, and the cookie by which a program knows what it was attached to.
//!
//! Everything is plain words of 8 bytes, all zero valid, without padding; [`Record::decode`] needs no unsafe code.

use crate::probe::{Call, Manner};

/// How many processes can be observed at once. Slot 0 is nobody's: see [`Slot`].
pub const SLOTS: usize = 4096;
/// Behind the slots of processes come those of groups: what one container may take of slots and records is counted
/// there. A group is a cgroup; several may share a place.
pub const GROUPS: usize = 512;
/// No group has more slots.
pub const SLOTS_OF_GROUP: u64 = SLOTS as u64 / 4;
/// The size of the ring buffer of records.
pub const RING_BYTES: u32 = 4 << 20;
/// How many of a sampled launch's parameters are read.
pub const SAMPLED_PARAMETERS: usize = 8;

/// What threads of one process write at the same time is apart: each of them has one of so many lanes, by its id. They lie
/// behind one another, the first ones of all slots, then the second ones: no two of a process are neighbours.
/// 4096 slots with 16 lanes of a cache line each are 4 MiB.
pub const LANES: usize = 16;

/// Hits are counted at so many places, on each CPU by itself; place 0 is not counted.
pub const SITES: usize = 4096;
/// A library has so many of them, and a function of it always the same one.
pub const SITES_OF_LIBRARY: usize = 128;

/// Records are admitted by windows of so many nanoseconds, as a power of two: 134 ms.
pub const WINDOW_SHIFT: u32 = 27;
/// No process writes more records in a window; more are lost. That is 60,000 a second.
pub const RECORDS_OF_PROCESS: u64 = 8192;
/// No group does. The ring holds three times as many.
pub const RECORDS_OF_GROUP: u64 = 16_384;

/// How a record can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Loss {
    /// There was no room in the ring buffer.
    Full = 0,
    /// The process, or its group, had written too many.
    Throttled = 1,
    /// A call returned of which no entry was kept: it began before it was observed, or there was no room.
    Unmatched = 2,
    /// The call's result is needed, and returns are not observed on this kernel.
    Unfollowed = 3,
}

impl Loss {
    /// How many ways there are.
    pub const COUNT: usize = 4;

    /// All, in the order of their values.
    pub const ALL: [Loss; Loss::COUNT] = [Loss::Full, Loss::Throttled, Loss::Unmatched, Loss::Unfollowed];

    /// As a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::Full => "full",
            Loss::Throttled => "throttled",
            Loss::Unmatched => "unmatched",
            Loss::Unfollowed => "unfollowed",
        }
    }
}

/// The counts of one process, in an array that the agent maps; a plain word each, added to atomically.
///
/// Slot 0 holds what could be charged to nobody: calls of processes that got no slot (the table was full) and their
/// lost records. Its `tgid` counts the slots handed out so far, so that the agent looks for new ones only when it moves;
/// its `first` is 1 while the agent sleeps: the next call wakes it by a [`Kind::Wake`].
///
/// In a group's slot `first` counts the slots its processes have; `window` and `taken` are as in others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The process (initial pid namespace); 0 while the slot is free.
    pub tgid: u64,
    /// When it made its first call: nanoseconds of `CLOCK_MONOTONIC`, as all times here.
    pub first: u64,
    /// When the process replaced itself by another program (`execve`); 0 if it did not. Nothing is counted here after.
    pub ended: u64,
    /// The slot of its group.
    pub group: u64,
    /// The window in which records were admitted last.
    pub window: u64,
    /// How many were asked for in it.
    pub taken: u64,
    /// Not 0 for each of its lanes that anybody has used.
    pub used: [u8; LANES],
    /// Lost records by [`Loss`].
    pub lost: [u64; Loss::COUNT],
    /// Calls by application threads, by [`Call`], but for those that its lanes count.
    pub application: [u64; Call::COUNT],
    /// Calls by the shim's own threads, by [`Call`].
    pub engine: [u64; Call::COUNT],
    /// Up to a multiple of a cache line, so that processes do not share one.
    pub spare: [u64; 4],
}

const _: () = assert!(size_of::<Slot>() == 512);

/// What a few of a process's application threads write, in a cache line of its own: see [`LANES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// Who called here last, a thread's id, in the lower half, and in which of the kernel's ticks in the upper: while both
    /// are the same, neither the thread's name nor the time is asked again.
    pub stamp: u64,
    /// When an application thread made its last probed call. It was at most a tick of the kernel (1 to 10 ms) later than this.
    pub last: u64,
    /// When an application thread last launched a kernel or a graph; the same is true of it.
    pub last_launch: u64,
    /// Calls by application threads, in the order of [`FREQUENT`].
    pub calls: [u64; FREQUENT.len()],
}

const _: () = assert!(size_of::<Lane>() == 64);

/// What is counted in lanes: calls without a record. Those with one meet in the ring anyway.
pub const FREQUENT: [Call; 5] =
    [Call::Launch, Call::GraphLaunch, Call::Synchronize, Call::HostFunction, Call::Batch];

/// Where a lane of a process lies.
pub const fn lane(slot: u32, thread: u32) -> u32 {
    slot + (thread % LANES as u32) * SLOTS as u32
}

/// What a probe was attached to, packed into its cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

impl Cookie {
    /// The call is followed to its return, where its record is written; otherwise that is done at entry.
    pub const FOLLOWED: u64 = 1 << 8;

    /// The function names a place by `CUmemLocation`, not by a device's number.
    pub const LOCATED: u64 = 1 << 9;

    /// The call's result is needed: where it is not followed, its record is a lost one.
    pub const WANTED: u64 = 1 << 10;

    /// For `call` with arguments of `shape`, made in a `manner`; `flags` are those above.
    pub const fn new(call: Call, shape: Shape, manner: Manner, flags: u64) -> Cookie {
        Cookie(call as u64 | flags | (shape as u64) << 16 | (manner as u64) << 24)
    }

    /// The same at a place whose hits are counted; 0: they are not.
    #[must_use]
    pub const fn at(self, site: u32) -> Cookie {
        Cookie(self.0 & 0xffff_ffff | (site as u64) << 32)
    }

    /// The number of the place.
    pub const fn site(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The number of the manner.
    pub const fn manner(self) -> u64 {
        self.0 >> 24 & 0xff
    }

    /// See [`Cookie::WANTED`].
    pub const fn wanted(self) -> bool {
        self.0 & Cookie::WANTED != 0
    }

    /// The index of the call's counters; below [`Call::COUNT`] in every cookie made by [`Cookie::new`].
    pub const fn call(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// The number of the shape.
    pub const fn shape(self) -> u64 {
        self.0 >> 16 & 0xff
    }

    /// See [`Cookie::LOCATED`].
    pub const fn located(self) -> bool {
        self.0 & Cookie::LOCATED != 0
    }

    /// See [`Cookie::FOLLOWED`].
    pub const fn followed(self) -> bool {
        self.0 & Cookie::FOLLOWED != 0
    }
}

/// How a function takes its arguments, as far as records need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shape {
    /// Only counted.
    Counted = 0,
    /// `(out *address, bytes, ..)`; the same with a handle for an address.
    Out = 1,
    /// `(out *address, out *pitch, width, height, ..)`.
    OutPitch = 2,
    /// `(address or handle or context, ..)`.
    Address = 3,
    /// `(address, bytes, detail, further, ..)`.
    Range = 4,
    /// `(out *handle, bytes, *properties, ..)`: the detail is the location in the properties.
    OutProperties = 5,
    /// A launch whose array of parameters is the fourth argument on the stack.
    LaunchStack = 6,
    /// A launch whose array of parameters is the third argument.
    LaunchThird = 7,
    /// `(out *handle, second, third, fourth)`.
    OutRest = 8,
}

/// What a [`Record`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A call, by its arguments and, if it was followed, its result.
    Call = 0,
    /// A sampled launch.
    Launch = 1,
    /// A process with a slot replaced its program.
    Exec = 2,
    /// The first thread of a process with a slot ended. Others may still run.
    Exit = 3,
    /// The agent slept, and somebody made a call.
    Wake = 4,
}

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// [`Kind`] in the lowest byte, the [`Call`] in the next, flags in the third, the [`Manner`] in the fourth.
    pub head: u64,
    /// Process in the upper, thread in the lower half.
    pub tgid_tid: u64,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The process's slot.
    pub slot: u64,
    /// The call's result (`CUresult`), if it was followed.
    pub result: u64,
    /// The address, handle or context it is about; the function for a launch.
    pub address: u64,
    /// Bytes; of a primary context, its device.
    pub bytes: u64,
    /// `cuMemMap`: the offset; prefetch: device or location; advise: the advice; create: the location's type in the
    /// lower half, its id in the upper.
    pub detail: u64,
    /// `cuMemMap`: the handle; advise: device or location.
    pub further: u64,
    /// A launch's first parameters, as far as they could be read; 0 otherwise. Behind the last one of a kernel with few
    /// there may be anything.
    pub parameters: [u64; SAMPLED_PARAMETERS],
}

/// The words of a whole record.
const WORDS: usize = size_of::<Record>() / 8;
/// The words in front of the parameters: all there is of a record that is not a launch.
const HEAD_WORDS: usize = WORDS - SAMPLED_PARAMETERS;

impl Record {
    /// The size of a record without parameters.
    pub const HEAD_BYTES: usize = HEAD_WORDS * 8;
    /// The call was made by a thread of the shim.
    pub const ENGINE: u64 = 1 << 16;
    /// The call was followed to its return: `result`, and addresses it gave out, are known.
    pub const RETURNED: u64 = 1 << 17;
    /// The place in `detail` or `further` is a `CUmemLocation` (type below, id above), not a device's number.
    pub const LOCATED: u64 = 1 << 18;

    /// The first word.
    pub const fn head(kind: Kind, call: usize, flags: u64) -> u64 {
        kind as u64 | (call as u64 & 0xff) << 8 | flags
    }

    /// A record from the bytes of the ring, `None` if they are not one.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        if bytes.len() != size_of::<Record>() && bytes.len() != Record::HEAD_BYTES {
            return None;
        }
        let mut words = [0_u64; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        let [head, tgid_tid, time, slot, result, address, bytes, detail, further, parameters @ ..] = words;
        Some(Record { head, tgid_tid, time, slot, result, address, bytes, detail, further, parameters })
    }

    /// What it tells.
    pub fn kind(&self) -> Option<Kind> {
        [Kind::Call, Kind::Launch, Kind::Exec, Kind::Exit, Kind::Wake]
            .get((self.head & 0xff) as usize)
            .copied()
    }

    /// Which call it is about; meaningful for [`Kind::Call`] and [`Kind::Launch`].
    pub fn call(&self) -> Option<Call> {
        Call::ALL.get((self.head >> 8 & 0xff) as usize).copied()
    }

    /// In which manner it was made.
    pub fn manner(&self) -> Option<Manner> {
        Manner::ALL.get((self.head >> 24 & 0xff) as usize).copied()
    }

    /// Whether the shim's own thread made the call.
    pub const fn engine(&self) -> bool {
        self.head & Record::ENGINE != 0
    }

    /// See [`Record::RETURNED`].
    pub const fn returned(&self) -> bool {
        self.head & Record::RETURNED != 0
    }

    /// See [`Record::LOCATED`].
    pub const fn located(&self) -> bool {
        self.head & Record::LOCATED != 0
    }

    /// The process.
    pub const fn tgid(&self) -> u32 {
        (self.tgid_tid >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_decodes_to_what_was_written() {
        let head = Record::head(Kind::Call, Call::Create as usize, Record::ENGINE);
        let words: [u64; HEAD_WORDS] = [head, 7 << 32 | 8, 1, 2, 3, 4, 5, 6, 9];
        let mut bytes = [0; Record::HEAD_BYTES];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_ne_bytes());
        }
        let record = Record::decode(&bytes).unwrap();
        assert_eq!((record.kind(), record.call()), (Some(Kind::Call), Some(Call::Create)));
        assert_eq!((record.tgid(), record.engine(), record.returned()), (7, true, false));
        assert_eq!((record.slot, record.further, record.parameters[0]), (2, 9, 0));
        assert_eq!(Record::decode(&bytes[1..]), None);
    }

    #[test]
    fn a_cookie_gives_back_its_parts() {
        for call in Call::ALL {
            let followed = if call == Call::Alloc { Cookie::FOLLOWED } else { 0 };
            let cookie = Cookie::new(call, Shape::LaunchThird, Manner::Import, followed);
            assert_eq!(cookie.manner(), Manner::Import as u64);
            assert_eq!(cookie.call(), call as usize);
            assert_eq!((cookie.site(), cookie.at(4095).site(), cookie.at(7).at(0)), (0, 4095, cookie));
            assert_eq!(cookie.at(4095).manner(), Manner::Import as u64);
            assert_eq!(cookie.shape(), Shape::LaunchThird as u64);
            assert_eq!(cookie.followed(), call == Call::Alloc);
        }
    }
}
