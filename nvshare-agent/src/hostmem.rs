//! The memory that shadows live in: arenas are memfds that the agent makes, so that they are charged to it and not to the
//! pods, and passes to one client each. How many there may be is not decided here.
//!
//! Pinning small pages takes ten times as long as pinning huge ones (283 against 27 ms per GiB, see docs/gpu.md), and
//! with the usual settings neither `fallocate` nor `MADV_HUGEPAGE` gives shared memory huge pages: `MADV_COLLAPSE` does.

#![expect(unsafe_code, reason = "arenas are mapped to be filled")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use nvshare_agent_core::arena::{HostError, Wanted};
use nvshare_common::bytes::Bytes;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::tasks::caught;

/// Arenas are whole multiples of this: a huge page, and a block of an extent.
pub const UNIT: Bytes = Bytes(2 << 20);

/// The least that the node keeps for others (a sixteenth of its memory, if that is more): an arena that would leave less
/// is not made, for the kernel would sooner kill somebody than refuse it.
const MARGIN: Bytes = Bytes::GIB;

/// Makes an arena of `bytes`, rounded up to whole [`UNIT`]s: filled, in huge pages where there are any, and of this size
/// for good.
pub fn make(bytes: Bytes) -> Result<OwnedFd, HostError> {
    let bytes = bytes.max(UNIT).round_up(UNIT).unwrap_or(bytes);
    room(bytes)?;
    let failed = |act| move |errno: Errno| HostError::System { act, bytes, error: errno.to_string() };
    let arena = memfd_create(c"nvshare-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(failed("create a memfd"))?;
    ftruncate(&arena, bytes.0).map_err(failed("set the size"))?;
    fcntl_add_seals(&arena, SealFlags::SHRINK | SealFlags::GROW).map_err(failed("seal the size"))?;
    collapse(&arena, bytes).map_err(failed("map the memory"))?;
    // Whatever is not there yet comes now, in small pages; nothing fails in the client later.
    fallocate(&arena, FallocateFlags::empty(), 0, bytes.0).map_err(failed("allocate the memory"))?;
    Ok(arena)
}

/// Once the client has mapped the arena: nobody may write to it otherwise any more (or punch holes into it), nor change
/// the seals. The client's own mapping stays writable.
pub fn close_for_good(arena: impl AsFd) -> Result<(), Errno> {
    fcntl_add_seals(arena, SealFlags::FUTURE_WRITE | SealFlags::SEAL)
}

/// Allocates as much of the arena as it can in huge pages, through a mapping that is gone afterwards.
fn collapse(arena: &OwnedFd, bytes: Bytes) -> Result<(), Errno> {
    let (bytes, unit) = (bytes.0 as usize, UNIT.0 as usize);
    // A huge page needs an address that is a multiple of its size; the reservation is larger by one.
    // SAFETY: a fresh mapping that the kernel places touches nothing that exists.
    let reserved =
        unsafe { mmap_anonymous(std::ptr::null_mut(), bytes + unit, ProtFlags::empty(), MapFlags::PRIVATE)? };
    let aligned = reserved.map_addr(|address| address.next_multiple_of(unit));
    // SAFETY: the range lies inside the reservation, which nobody else knows.
    let mapped = unsafe {
        mmap(aligned, bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED, arena, 0)
    };
    if mapped.is_ok() {
        // SAFETY: the range was mapped just now, and neither advice changes what it holds.
        let advise =
            |at, bytes, advice| unsafe { libc::madvise(aligned.wrapping_byte_add(at).cast(), bytes, advice) };
        // Where nothing is, nothing collapses (EINVAL, Linux 6.18): a first small page begins each huge one.
        let begun = (0..bytes).step_by(unit).all(|at| advise(at, 4096, libc::MADV_POPULATE_WRITE) == 0);
        // A kernel that knows neither advice, or has no huge page left, leaves small ones.
        if begun {
            advise(0, bytes, libc::MADV_COLLAPSE);
        }
    }
    // SAFETY: the reservation, and the mapping in it, are this function's own, and it ends here.
    unsafe { munmap(reserved, bytes + unit)? };
    mapped.map(|_| ())
}

/// Memory that has a limit.
struct Limited {
    whose: &'static str,
    limit: Bytes,
    free: Bytes,
    /// What is kept of it at least.
    least: Bytes,
}

/// Whether `bytes` can be had without anybody being killed for it.
fn room(bytes: Bytes) -> Result<(), HostError> {
    for Limited { whose, limit, free, least } in [node(), cgroup()].into_iter().flatten() {
        let margin = least.max(Bytes(limit.0 / 16));
        if free.saturating_sub(margin) < bytes {
            return Err(HostError::NoRoom { bytes, free, margin, whose });
        }
    }
    Ok(())
}

/// The node's memory: what can be had without swapping.
fn node() -> Option<Limited> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let figure = |name: &str| -> Option<Bytes> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Bytes(kibibytes << 10))
    };
    Some(Limited {
        whose: "the node's",
        limit: figure("MemTotal:")?,
        free: figure("MemAvailable:")?,
        least: MARGIN,
    })
}

/// What is left below the limit of the agent's own cgroup (version 2); none without a limit. A container sees its cgroup
/// as the root.
fn cgroup() -> Option<Limited> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let figure = |name: &str| -> Option<Bytes> {
        let text = fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok()?;
        text.trim().parse().ok().map(Bytes)
    };
    let limit = figure("memory.max")?;
    let free = limit.saturating_sub(figure("memory.current")?);
    Some(Limited { whose: "below the limit of the agent's cgroup", limit, free, least: Bytes::ZERO })
}

/// What became of a wanted arena.
#[derive(Debug)]
pub struct Made {
    /// Which.
    pub wanted: Wanted,
    /// The arena.
    pub arena: Result<OwnedFd, HostError>,
}

/// Makes arenas on a thread of its own: filling one takes about 0.2 s per GiB. The thread ends when all of these are
/// gone.
#[derive(Clone, Debug)]
pub struct Maker(mpsc::Sender<Wanted>);

impl Maker {
    /// Starts the thread; it gives every arena, or the reason why there is none, to `tell`.
    pub fn start(tell: impl FnMut(Made) + Send + 'static) -> std::io::Result<Maker> {
        Maker::start_with(make, tell)
    }

    fn start_with(
        make: impl Fn(Bytes) -> Result<OwnedFd, HostError> + Send + 'static,
        mut tell: impl FnMut(Made) + Send + 'static,
    ) -> std::io::Result<Maker> {
        let (orders, ordered) = mpsc::channel::<Wanted>();
        thread::Builder::new().name("host-memory".to_owned()).spawn(move || {
            for wanted in ordered {
                // A panic is a reason like others: the thread goes on.
                let bytes = wanted.bytes;
                let panicked = |error| Err(HostError::System { act: "make the memory", bytes, error });
                tell(Made { wanted, arena: caught(|| make(bytes)).unwrap_or_else(panicked) });
            }
        })?;
        Ok(Maker(orders))
    }

    /// Orders an arena.
    pub fn order(&self, wanted: Wanted) {
        // The thread ends only with the last of these.
        let _ = self.0.send(wanted);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use nvshare_common::ids::{ArenaId, ClientId};
    use rustix::fs::{fcntl_get_seals, fstat};

    use super::*;

    #[test]
    fn an_arena_is_filled_and_keeps_its_size() {
        let arena = make(Bytes(5 << 20)).unwrap();
        let status = fstat(&arena).unwrap();
        assert_eq!(status.st_size, 6 << 20);
        assert_eq!(status.st_blocks * 512, 6 << 20, "not all of it is allocated");
        assert_eq!(ftruncate(&arena, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&arena, 1 << 30), Err(Errno::PERM));
    }

    #[test]
    fn once_closed_an_arena_is_written_only_through_mappings_that_exist() {
        let arena = make(UNIT).unwrap();
        let bytes = UNIT.0 as usize;
        let map = |access| {
            // SAFETY: a fresh mapping that the kernel places touches nothing that exists.
            unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &arena, 0) }
        };
        let mapped = map(ProtFlags::READ | ProtFlags::WRITE).unwrap().cast::<u8>();
        close_for_good(&arena).unwrap();
        // SAFETY: the byte lies in the mapping, which lives until the end of this test.
        unsafe { mapped.write(7) };
        assert!(map(ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert!(fallocate(&arena, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_err());
        assert!(fcntl_add_seals(&arena, SealFlags::WRITE).is_err());
        assert!(fcntl_get_seals(&arena).unwrap().contains(SealFlags::SEAL));
        let mut file = fs::File::from(arena.try_clone().unwrap());
        assert!(file.write_all(b"x").is_err());
        let mut first = [0];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [7]);
        // SAFETY: nothing points into the mapping any more.
        unsafe { munmap(mapped.cast(), bytes).unwrap() };
    }

    #[test]
    fn an_arena_larger_than_the_node_is_refused_before_it_is_made() {
        let error = make(Bytes(1 << 50)).unwrap_err();
        assert!(
            matches!(error, HostError::NoRoom { .. }) && error.to_string().contains("--host-memory"),
            "{error}"
        );
    }

    #[test]
    fn orders_are_answered_with_an_arena_or_the_reason() {
        let (answers, answered) = mpsc::channel();
        let maker = Maker::start(move |made| answers.send(made).unwrap()).unwrap();
        for (number, bytes) in [(1, UNIT), (2, Bytes(1 << 50))] {
            maker.order(Wanted { client: ClientId(1), arena: ArenaId(number), bytes });
        }
        let limit = Duration::from_secs(30);
        let first = answered.recv_timeout(limit).unwrap();
        assert!(first.wanted.arena == ArenaId(1) && first.arena.is_ok());
        assert!(answered.recv_timeout(limit).unwrap().arena.is_err());
    }

    #[test]
    fn making_that_panics_is_a_reason_like_others_and_the_next_is_made() {
        let (answers, answered) = mpsc::channel();
        let make = |bytes| if bytes == UNIT { panic!("as if it were wrong") } else { make(bytes) };
        let maker = Maker::start_with(make, move |made| answers.send(made).unwrap()).unwrap();
        for (number, bytes) in [(1, UNIT), (2, Bytes(2 * UNIT.0))] {
            maker.order(Wanted { client: ClientId(1), arena: ArenaId(number), bytes });
        }
        let limit = Duration::from_secs(30);
        let why = answered.recv_timeout(limit).unwrap().arena.unwrap_err().to_string();
        assert!(why.contains("as if it were wrong") && why.contains("2 MiB"), "{why}");
        assert!(answered.recv_timeout(limit).unwrap().arena.is_ok());
    }

    #[test]
    #[ignore = "prints how much of an arena is huge, and how long it took"]
    fn measure_an_arena() {
        let start = std::time::Instant::now();
        let arena = make(Bytes::GIB).unwrap();
        println!("1 GiB in {:?}; {:?}", start.elapsed(), arena);
        let huge = fs::read_to_string("/proc/meminfo").unwrap();
        println!("{}", huge.lines().find(|line| line.starts_with("ShmemHugePages")).unwrap());
    }
}
