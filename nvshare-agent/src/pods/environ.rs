//! The device ids that the device plugin put into a container's environment, read from `/proc/PID/environ`.
//!
//! Reading it reads the process's own memory, and a process can make that take for ever. So it happens on a thread
//! apart, a few at a time, and whoever is stuck costs nobody else more than one of these places.

use std::io::Read;
use std::sync::Arc;

use nvshare_agent_core::process::Process;
use tokio::sync::Semaphore;

use crate::proc;

/// Set by the device plugin: the ids that the kubelet chose, separated by commas.
const VARIABLE: &str = "NVSHARE_DEVICE_IDS";
/// How many environments are read at a time.
const AT_ONCE: usize = 8;
/// How much of one is read.
const MOST: u64 = 1 << 20;
/// How many ids one process may have.
const IDS: usize = 64;

/// Reads environments.
#[derive(Clone, Debug)]
pub(crate) struct Reader(Arc<Semaphore>);

impl Default for Reader {
    fn default() -> Reader {
        Reader(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Reader {
    /// Reads the device ids of `process` and gives them to `tell`, none if it has ended. `false`: too many are being read,
    /// ask again later.
    pub(crate) fn read(&self, process: Process, tell: impl FnOnce(Vec<String>) + Send + 'static) -> bool {
        let Ok(place) = Arc::clone(&self.0).try_acquire_owned() else { return false };
        tokio::task::spawn_blocking(move || {
            let ids = device_ids(&environ(process.pid));
            // The number may have passed to another process before it was opened.
            tell(if proc::process(process.pid) == Some(process) { ids } else { Vec::new() });
            drop(place);
        });
        true
    }
}

fn environ(pid: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(format!("/proc/{pid}/environ")) {
        // What was read before an error is as good as it is.
        let _ = file.take(MOST).read_to_end(&mut bytes);
    }
    bytes
}

pub(super) fn device_ids(environ: &[u8]) -> Vec<String> {
    let value = environ.split(|byte| *byte == 0).find_map(|entry| {
        let entry = std::str::from_utf8(entry).ok()?;
        entry.strip_prefix(VARIABLE)?.strip_prefix('=')
    });
    let ids = value.unwrap_or_default().split(',').map(str::trim).filter(|id| !id.is_empty());
    ids.take(IDS).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::Stdio;

    use super::*;

    #[test]
    fn device_ids_are_found_among_other_variables() {
        let environ =
            b"PATH=/bin\0NVSHARE_DEVICE_IDS_OLD=x\0NVSHARE_DEVICE_IDS=GPU-1::0, GPU-1::2,\0\xff=\xff\0";
        assert_eq!(device_ids(environ), ["GPU-1::0", "GPU-1::2"]);
        assert!(device_ids(b"PATH=/bin\0").is_empty());
        assert!(device_ids(b"NVSHARE_DEVICE_IDS=").is_empty());
        let many = format!("NVSHARE_DEVICE_IDS={}", "x,".repeat(100_000));
        assert_eq!(device_ids(many.as_bytes()).len(), IDS);
    }

    #[tokio::test]
    async fn the_environment_of_a_running_process_is_read() {
        let mut cat = std::process::Command::new("cat");
        cat.env(VARIABLE, "GPU-1::7").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cat.spawn().unwrap();
        // While a program is being started its environment is empty for a moment.
        child.stdin.as_mut().unwrap().write_all(b".").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let process = proc::process(child.id()).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        assert!(Reader::default().read(process, |ids| tell.send(ids).unwrap()));
        assert_eq!(told.await.unwrap(), ["GPU-1::7"]);
        let another = Process { start: process.start + 1, ..process };
        let (tell, told) = tokio::sync::oneshot::channel();
        assert!(Reader::default().read(another, |ids| tell.send(ids).unwrap()));
        assert!(told.await.unwrap().is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn no_more_are_read_at_a_time_than_there_are_places() {
        let reader = Reader::default();
        let this = proc::process(std::process::id()).unwrap();
        let (release, hold) = std::sync::mpsc::channel::<()>();
        let hold = Arc::new(std::sync::Mutex::new(hold));
        for _ in 0..AT_ONCE {
            let hold = Arc::clone(&hold);
            assert!(reader.read(this, move |_| {
                let _ = hold.lock().unwrap().recv();
            }));
        }
        assert!(!reader.read(this, |_| {}));
        drop(release);
    }
}
