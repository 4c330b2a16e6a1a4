//! What the kernel says of this process: where its descriptors lead, and what it has mapped. It is looked at when the
//! application may be out of descriptors, or in a root without `/proc`: so what a look needs is opened at the first use of the
//! driver and kept, and a look opens nothing. It is the directory of a thread of ours, which lives as long as the process:
//! that of a main thread which ended by itself (`pthread_exit`) says of everything that there is none.
//!
//! A look that could not be made is an error, never "nothing there".

#![cfg_attr(test, expect(unsafe_code, reason = "descriptors are closed by their numbers"))]

use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat, seek};
use rustix::io::{Errno, pread};

use crate::descriptors::Own;

/// So much of the text is read at once; the kernel gives a page.
const PIECE: usize = 1 << 13;

/// A look that was not made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blind {
    /// What is looked at could not be opened.
    Opening(Errno),
    /// It could not be read.
    Reading(Errno),
    /// It was read, and lacks what must be in it.
    Empty,
}

impl From<Errno> for Blind {
    fn from(error: Errno) -> Blind {
        Blind::Reading(error)
    }
}

impl fmt::Display for Blind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blind::Opening(error) => write!(out, "cannot open /proc/thread-self: {error}"),
            Blind::Reading(error) => write!(out, "cannot read /proc/thread-self: {error}"),
            Blind::Empty => write!(out, "/proc/thread-self is not that of this process"),
        }
    }
}

/// One thread's directory.
struct Eyes {
    descriptors: Own,
    maps: Own,
}

/// `/proc`, until a thread of ours has its eyes.
fn kept() -> MutexGuard<'static, Option<Own>> {
    static PROC: Mutex<Option<Own>> = Mutex::new(None);
    PROC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Used by one thread at a time: what is read has one place.
fn eyes() -> MutexGuard<'static, Option<Eyes>> {
    static EYES: Mutex<Option<Eyes>> = Mutex::new(None);
    EYES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// At the first use, on a thread of the application's, which may leave its root right afterwards: a thread of ours that
/// has yet to begin can still [`open`].
pub(crate) fn prepare() {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, c"/proc", flags, Mode::empty());
    *kept() = opened.and_then(Own::new).ok();
}

/// On a thread of ours that lives as long as the process, when it begins. What fails is tried again with each look.
pub(crate) fn open() {
    let mut eyes = eyes();
    if eyes.is_none() {
        *eyes = Eyes::open().ok();
    }
    if eyes.is_some() {
        *kept() = None;
    }
}

/// The first target of a descriptor of this process that is `wanted`.
pub(crate) fn target(wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>, Blind> {
    look(|eyes| targets(eyes.descriptors.get()?, &wanted))
}

/// The text of `/proc/self/maps`. Its paths are bytes: a file may have any name.
pub(crate) fn maps() -> Result<Vec<u8>, Blind> {
    look(|eyes| {
        let text = whole(eyes.maps.get()?)?;
        if text.is_empty() { Err(Blind::Empty) } else { Ok(text) }
    })
}

/// Looks once, and, where that failed, once more with other eyes: the application may have closed ours.
fn look<T>(once: impl Fn(&Eyes) -> Result<T, Blind>) -> Result<T, Blind> {
    let mut eyes = eyes();
    if let Some(known) = &*eyes
        && let Ok(seen) = once(known)
    {
        return Ok(seen);
    }
    // First what leads nowhere goes: its numbers may be the last ones.
    *eyes = None;
    let new = eyes.insert(Eyes::open().map_err(Blind::Opening)?);
    once(new)
}

impl Eyes {
    /// Of the calling thread.
    fn open() -> Result<Eyes, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let within = |directory: BorrowedFd<'_>, [descriptors, maps]: [&CStr; 2]| {
            let descriptors = openat(directory, descriptors, flags | OFlags::DIRECTORY, Mode::empty())?;
            let maps = openat(directory, maps, flags, Mode::empty())?;
            Ok(Eyes { descriptors: Own::new(descriptors)?, maps: Own::new(maps)? })
        };
        let proc = kept();
        if let Some(proc) = &*proc
            && let Ok(proc) = proc.get()
            && let Ok(eyes) = within(proc, [c"thread-self/fd", c"thread-self/maps"])
        {
            return Ok(eyes);
        }
        within(CWD, [c"/proc/thread-self/fd", c"/proc/thread-self/maps"])
    }
}

/// The first target below the directory that is `wanted`. A directory without the descriptor by which it is read is not ours.
fn targets(directory: BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>, Blind> {
    seek(directory, SeekFrom::Start(0))?;
    let own = directory.as_raw_fd().to_string();
    let (mut met, mut buffer) = (false, [MaybeUninit::uninit(); 4096]);
    let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        match readlinkat(directory, name, Vec::new()) {
            Ok(target) if wanted(target.to_bytes()) => return Ok(Some(target.into_bytes())),
            Ok(_) => met = met || name.to_bytes() == own.as_bytes(),
            // It was closed meanwhile; or it is so deep in the file system that it has no name, as no device is.
            Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if met { Ok(None) } else { Err(Blind::Empty) }
}

/// From the start to the end.
fn whole(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    loop {
        let before = text.len();
        text.resize(before + PIECE, 0);
        let read = match pread(file, &mut text[before..], before as u64) {
            Ok(read) => read,
            Err(error) => {
                text.truncate(before);
                if error == Errno::INTR {
                    continue;
                }
                return Err(error);
            }
        };
        text.truncate(before + read);
        if read == 0 {
            return Ok(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_and_by_other_eyes_when_ours_were_closed() {
        for _ in 0..3 {
            let file = tempfile::NamedTempFile::new().unwrap();
            let path = file.path().as_os_str().as_encoded_bytes();
            assert_eq!(target(|target| target == path).unwrap().as_deref(), Some(path));
            assert_eq!(target(|target| target == b"/nowhere").unwrap(), None);
            let maps = maps().unwrap();
            assert!(maps.ends_with(b"\n") && maps.windows(7).any(|word| word == b"[stack]"));
            let eyes = eyes();
            let eyes = eyes.as_ref().unwrap();
            // As an application does that closes what it does not know.
            for ours in [&eyes.descriptors, &eyes.maps] {
                let number = ours.get().unwrap().as_raw_fd();
                // SAFETY: ours; whatever has the number next is looked at before it is used.
                unsafe { rustix::io::close(number) };
            }
        }
    }

    #[test]
    fn the_directory_of_a_thread_that_ended_is_no_answer() {
        let gone = std::thread::spawn(|| Eyes::open().unwrap()).join().unwrap();
        let seen = || {
            let descriptors = gone.descriptors.get().map_err(Blind::from);
            let text = gone.maps.get().and_then(whole);
            descriptors.and_then(|directory| targets(directory, |_| false)).is_ok()
                || text.is_ok_and(|text| !text.is_empty())
        };
        // The kernel is done with a thread a little after it was joined.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while seen() {
            assert!(std::time::Instant::now() < end, "it is still seen");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_directory_without_our_own_descriptor_is_no_answer() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("0")).unwrap();
        let open = std::fs::File::open(directory.path()).unwrap();
        assert!(matches!(targets(open.as_fd(), |_| false), Err(Blind::Empty)));
        let null = targets(open.as_fd(), |target| target == b"/dev/null").unwrap();
        assert_eq!(null.as_deref(), Some(&b"/dev/null"[..]));
    }
}
