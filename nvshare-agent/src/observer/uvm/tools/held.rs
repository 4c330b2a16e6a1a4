//! The trackers that are held, and the thread that lets go of them.
//!
//! A tracker keeps the VA space of its process alive, and with it all memory that the process has on its devices (seen: 100 GiB
//! of a dead process stayed in use until its tracker was closed). So nobody may wait for us: this thread does nothing else, waits for
//! nothing but the ends of processes, and takes no lock that is held for long. The eBPF programs wake it when a process begins to
//! end: then the tracker is closed (0.2 ms, seen) before the process has closed its own descriptor, and the process gives its
//! memory back by itself, before anybody who waits for it hears of its end. That it is dead, as its descriptor tells, is too late
//! for that (20 to 60 ms, seen), and only for what the programs missed.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use aya::maps::{MapData, RingBuf};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

/// What epoll carries; keys of processes are above.
const STOP: u64 = 0;
const ENDINGS: u64 = 1;
const FIRST: u64 = 2;

/// All trackers.
pub(super) struct Held {
    shared: Arc<Shared>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
    next: u64,
}

struct Shared {
    epoll: OwnedFd,
    processes: Mutex<HashMap<u64, Trackers>>,
}

/// Those of one process.
struct Trackers {
    pid: u32,
    /// Closed in this order: what counts goes first.
    _counting: Vec<OwnedFd>,
    /// Readable when the process is dead.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is epoll that looks at it"))]
    process: OwnedFd,
}

impl Held {
    /// None yet. `endings`: where the eBPF programs tell who begins to end.
    pub(super) fn new(endings: Option<RingBuf<MapData>>) -> io::Result<Held> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        add(&epoll, &stop, STOP)?;
        if let Some(endings) = &endings {
            add(&epoll, endings, ENDINGS)?;
        }
        let shared = Arc::new(Shared { epoll, processes: Mutex::default() });
        let by_thread = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("uvm-trackers".into()).spawn(move || by_thread.run(endings))?;
        Ok(Held { shared, stop, thread: Some(thread), next: FIRST })
    }

    /// Holds the trackers of a process until it ends; the key by which they are known.
    pub(super) fn hold(&mut self, pid: u32, trackers: Vec<OwnedFd>, process: OwnedFd) -> io::Result<u64> {
        let key = self.next;
        self.next += 1;
        // Under the lock: it may be dead already, and must be found then.
        let mut processes = self.shared.processes();
        add(&self.shared.epoll, &process, key)?;
        processes.insert(key, Trackers { pid, _counting: trackers, process });
        Ok(key)
    }

    /// Whether these are still held.
    pub(super) fn has(&self, key: u64) -> bool {
        self.shared.processes().contains_key(&key)
    }

    /// From here on only the eBPF programs tell of ends.
    #[cfg(test)]
    pub(super) fn forget_deaths(&self) {
        for trackers in self.shared.processes().values() {
            epoll::delete(&self.shared.epoll, &trackers.process).unwrap();
        }
    }

    /// Lets go of these, if they still are held.
    pub(super) fn release(&self, key: u64) {
        let gone = self.shared.processes().remove(&key);
        drop(gone);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It can only fail when it was written 2^64 times.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that closes trackers of managed memory ended in a panic");
        }
        self.shared.processes().clear();
    }
}

impl Shared {
    fn processes(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Trackers>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut endings: Option<RingBuf<MapData>>) {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the ends of processes: no managed memory is counted");
                    break;
                }
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    ENDINGS => self.begin_to_end(endings.as_mut()),
                    key => self.dead(key),
                }
            }
        }
        // Better nothing is known of them than that they keep their memory.
        self.processes().clear();
    }

    /// Nobody waits yet: the process itself will give back its memory.
    fn begin_to_end(&self, endings: Option<&mut RingBuf<MapData>>) {
        let Some(endings) = endings else { return };
        while let Some(item) = endings.next() {
            let pid = item.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
            drop(item);
            let gone: Vec<Trackers> = {
                let mut processes = self.processes();
                let of_it = |(_, trackers): &(&u64, &mut Trackers)| Some(u64::from(trackers.pid)) == pid;
                let keys: Vec<u64> = processes.iter_mut().filter(of_it).map(|(key, _)| *key).collect();
                keys.iter().filter_map(|key| processes.remove(key)).collect()
            };
            drop(gone);
        }
    }

    /// What it had on its devices is given back as its tracker is closed, which takes some time: others must not wait for that.
    fn dead(&self, key: u64) {
        let Some(gone) = self.processes().remove(&key) else { return };
        let closing = thread::Builder::new().name("uvm-close".into()).spawn(move || drop(gone));
        if let Err(error) = closing {
            // Closed all the same, with the closure that was not run.
            tracing::debug!(%error, "closed without a thread");
        }
    }
}

fn add(epoll: &OwnedFd, what: impl AsFd, key: u64) -> io::Result<()> {
    let data = epoll::EventData::new_u64(key);
    Ok(epoll::add(epoll, what.as_fd(), data, epoll::EventFlags::IN)?)
}
