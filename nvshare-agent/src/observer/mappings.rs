//! New mappings of libcuda, as they happen: a software event per CPU tells of every executable mapping on the node, with
//! the process's number in the initial namespace, also from containers. A new library is seen within milliseconds.

#![expect(unsafe_code, reason = "the kernel's ring of events is mapped, and read as shared words")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::find::{self, InUse};

const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_COUNT_SW_DUMMY: u64 = 9;
const FLAG_MMAP: u64 = 1 << 8;
const FLAG_WATERMARK: u64 = 1 << 14;
const FLAG_MMAP2: u64 = 1 << 23;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_RECORD_LOST: u32 = 2;
const PERF_RECORD_MMAP2: u32 = 10;

/// The fields of `struct perf_event_attr` in its second version (72 bytes).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    breakpoint_type: u32,
    config1: u64,
    config2: u64,
}

const PAGE: usize = 4096;
const DATA: usize = 16 * PAGE;
/// In the first page: how far the kernel has written, how far we have read.
const HEAD_AT: usize = 1024;
const TAIL_AT: usize = 1032;
/// In a `PERF_RECORD_MMAP2`: the process, the address, the length, the device (major, minor), the inode, the name.
const PID_AT: usize = 8;
const ADDRESS_AT: usize = 16;
const LENGTH_AT: usize = 24;
const DEVICE_AT: usize = 40;
const INODE_AT: usize = 48;
const NAME_AT: usize = 72;

/// A mapping of a file whose name is that of a libcuda: a new one, or one whose protection changed, as it does before
/// and after somebody writes into its code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Which process mapped it.
    pub pid: u32,
    /// What.
    pub library: InUse,
}

/// The event of one CPU and its ring.
pub(super) struct Mappings {
    event: OwnedFd,
    ring: *mut u8,
}

// SAFETY: the ring is memory shared with the kernel, used by whoever owns this.
unsafe impl Send for Mappings {}

impl Mappings {
    /// One for every CPU that is online.
    pub(super) fn of_all_cpus() -> io::Result<Vec<Mappings>> {
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
        cpus(online.trim()).into_iter().map(Mappings::of_cpu).collect()
    }

    fn of_cpu(cpu: i32) -> io::Result<Mappings> {
        let attributes = Attributes {
            kind: PERF_TYPE_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: PERF_COUNT_SW_DUMMY,
            flags: FLAG_MMAP | FLAG_MMAP2 | FLAG_WATERMARK,
            wakeup_watermark: 1,
            ..Attributes::default()
        };
        // SAFETY: the structure is as long as it says; all processes on one CPU, no group.
        let event = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC)
        };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let event = unsafe { OwnedFd::from_raw_fd(event as i32) };
        // SAFETY: a new shared mapping at an address of the kernel's choice; the event's descriptor gives a ring.
        let ring = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                PAGE + DATA,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &event,
                0,
            )
        }?;
        Ok(Mappings { event, ring: ring.cast() })
    }

    /// Readable when there is something.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: an aligned word in the ring's first page, which the kernel writes whole.
        unsafe { &*self.ring.add(at).cast::<AtomicU64>() }
    }

    /// Reads everything there is; tells of every libcuda. Answers whether something was lost: then look at all processes.
    pub(super) fn read(&mut self, mut tell: impl FnMut(Mapped)) -> bool {
        let head = self.position(HEAD_AT).load(Ordering::Acquire);
        let mut tail = self.position(TAIL_AT).load(Ordering::Relaxed);
        let mut lost = false;
        let mut record = Vec::new();
        while tail < head {
            let [kind, sizes] = [0, 4].map(|at| u32::from_ne_bytes(self.bytes(tail + at)));
            let size = u64::from(sizes >> 16);
            if size < 8 || size > head - tail {
                // Not what the kernel writes: give the rest up.
                lost = true;
                break;
            }
            if kind == PERF_RECORD_LOST {
                lost = true;
            } else if kind == PERF_RECORD_MMAP2 {
                record.clear();
                record.extend((0..size / 8).flat_map(|word| self.bytes::<8>(tail + 8 * word)));
                tell_if_libcuda(&record, &mut tell);
            }
            tail += size;
        }
        fence(Ordering::Acquire);
        self.position(TAIL_AT).store(head, Ordering::Release);
        lost
    }

    /// Some bytes of the data, which is a ring of whole words.
    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let at = at as usize % DATA;
        assert!(at + N <= DATA, "records are aligned to 8 bytes");
        // SAFETY: within the data behind the first page; the kernel has finished writing up to the head.
        unsafe { self.ring.add(PAGE + at).cast::<[u8; N]>().read_unaligned() }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `of_cpu`; nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.ring.cast(), PAGE + DATA) };
    }
}

/// Tells nothing of what is not a libcuda, or not a record: `None`.
pub(super) fn tell_if_libcuda(record: &[u8], tell: &mut impl FnMut(Mapped)) -> Option<()> {
    let name = record.get(NAME_AT..)?.split(|byte| *byte == 0).next()?;
    let path = str::from_utf8(name).ok().filter(|path| find::is_libcuda(path))?.to_owned();
    let half = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let word = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let (address, length) = (word(ADDRESS_AT)?, word(LENGTH_AT)?);
    let library = InUse {
        file: format!("{:02x}:{:02x} {}", half(DEVICE_AT)?, half(DEVICE_AT + 4)?, word(INODE_AT)?),
        path,
        place: format!("{address:x}-{:x}", address.wrapping_add(length)),
    };
    tell(Mapped { pid: half(PID_AT)?, library });
    Some(())
}

/// `0-3,8` as numbers.
pub(super) fn cpus(list: &str) -> Vec<i32> {
    let numbers = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.parse::<i32>().ok()?..=to.parse().ok()?)
    };
    list.split(',').filter_map(numbers).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_read_as_the_kernel_writes_it() {
        assert_eq!(cpus("0"), [0]);
        assert_eq!(cpus("0-3,8,10-11"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(cpus(""), [0; 0]);
    }

    #[test]
    fn only_mappings_of_libcuda_are_told() {
        let mut record = vec![0; NAME_AT];
        record[8..12].copy_from_slice(&77_u32.to_ne_bytes());
        record[16..24].copy_from_slice(&0x7f00_0000_u64.to_ne_bytes());
        record[24..32].copy_from_slice(&0x3000_u64.to_ne_bytes());
        record[40..44].copy_from_slice(&0xfe_u32.to_ne_bytes());
        record[44..48].copy_from_slice(&1_u32.to_ne_bytes());
        record[48..56].copy_from_slice(&1234_u64.to_ne_bytes());
        let mut told = Vec::new();
        for name in ["/lib/libcuda.so.550.1\0\0\0", "/lib/libcudart.so.12\0\0\0\0"] {
            record.truncate(NAME_AT);
            record.extend(name.bytes());
            tell_if_libcuda(&record, &mut |mapped| told.push(mapped));
        }
        let library = InUse {
            file: "fe:01 1234".into(),
            path: "/lib/libcuda.so.550.1".into(),
            place: "7f000000-7f003000".into(),
        };
        assert_eq!(told, [Mapped { pid: 77, library }]);
    }
}
