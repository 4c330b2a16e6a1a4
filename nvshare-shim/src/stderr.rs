//! Standard error of a program that is not ours. Our few lines must not end up in a file that the application has opened
//! under that number, must not wait for somebody to read them, and must not end the program by a signal.

#![expect(unsafe_code, reason = "signals are held back, and what runs as the library is loaded is listed")]

use std::fmt;
use std::io::IsTerminal;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fstat};

/// What it leads to when the library is loaded: device and inode; 0, 0: it is closed.
static DEVICE: AtomicU64 = AtomicU64::new(0);
static INODE: AtomicU64 = AtomicU64::new(0);

/// A pipe that has room takes this much at once.
const AT_ONCE: usize = 4096;

/// Called by the loader at the start of the process. One question to the kernel, nothing else: this runs in every process.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

extern "C" fn at_start() {
    if let Ok(status) = fstat(number()) {
        DEVICE.store(status.st_dev, Ordering::Relaxed);
        INODE.store(status.st_ino, Ordering::Relaxed);
    }
}

/// Says one line, whatever is wanted. One `write` per line, so that lines of several threads and processes do not mix.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    write(format!("nvshare[{}]: {text}\n", std::process::id()).as_bytes());
}

/// Writes `line`, as much of it as goes at once, where that harms nobody.
fn write(line: &[u8]) {
    let line = &line[..line.len().min(AT_ONCE)];
    let Ok(status) = fstat(number()) else { return };
    if !is_for_lines(&status) || !has_room() {
        return;
    }
    let _held = Held::back();
    let _ = rustix::io::write(number(), line);
}

/// Whether it leads where it did at the start; or somewhere else that holds lines of several writers.
fn is_for_lines(status: &Stat) -> bool {
    let as_before =
        (status.st_dev, status.st_ino) == (DEVICE.load(Ordering::Relaxed), INODE.load(Ordering::Relaxed));
    as_before
        || match FileType::from_raw_mode(status.st_mode) {
            FileType::CharacterDevice => std::io::stderr().is_terminal(),
            FileType::RegularFile => fcntl_getfl(number()).is_ok_and(|flags| flags.contains(OFlags::APPEND)),
            _ => false,
        }
}

/// Whether a write would not wait.
fn has_room() -> bool {
    let mut asked = [PollFd::from_borrowed_fd(number(), PollFlags::OUT)];
    let ready = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    ready.is_ok_and(|ready| ready > 0) && asked[0].revents().contains(PollFlags::OUT)
}

fn number() -> BorrowedFd<'static> {
    // SAFETY: not -1; where it is closed every call answers `EBADF`.
    unsafe { BorrowedFd::borrow_raw(2) }
}

/// While it lives, what the kernel would end the program with for a write (nobody reads, or the file may not grow), or stop it for (it is in the background) is held
/// back, and taken away afterwards.
struct Held {
    mask: libc::sigset_t,
    ours: libc::sigset_t,
}

impl Held {
    fn back() -> Held {
        let (mut mask, mut ours, mut pending) =
            (MaybeUninit::uninit(), MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: each set is initialised by the first call that is given it.
        unsafe {
            libc::sigemptyset(ours.as_mut_ptr());
            libc::sigpending(pending.as_mut_ptr());
            for signal in [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU] {
                // One that waits already is the application's.
                if libc::sigismember(pending.as_ptr(), signal) == 0 {
                    libc::sigaddset(ours.as_mut_ptr(), signal);
                }
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, ours.as_ptr(), mask.as_mut_ptr());
            Held { mask: mask.assume_init(), ours: ours.assume_init() }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: both sets were initialised; the mask is the one that this thread had.
        unsafe {
            while libc::sigtimedwait(&raw const self.ours, std::ptr::null_mut(), &raw const none) > 0 {}
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, std::ptr::null_mut());
        }
    }
}
