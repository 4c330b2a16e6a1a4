//! A second process, to which the script lends memory by CUDA IPC: this binary again, under the library as the first one is. It
//! does what it is told over a socket, one thing at a time, and waits for its own work. Its memory is swapped out and in all the
//! time, whatever the script does.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUipcMemHandle};

use crate::script::Op;
use crate::world::{MEMORIES, World, cu, hash};

/// The descriptor that a second process listens on.
const SOCKET: &str = "NVSHARE_DIFFERENTIAL_PEER";
/// How large a piece of its own is.
const OWN: usize = 3 << 20;

struct Peer {
    _child: Child,
    socket: BufReader<UnixStream>,
}

static PEER: Mutex<Option<Peer>> = Mutex::new(None);

fn peer() -> MutexGuard<'static, Option<Peer>> {
    PEER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    fn start() -> Peer {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let number = theirs.as_raw_fd();
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command
            .args(["role", "--exact", "--nocapture", "--test-threads=1"])
            .env(SOCKET, number.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if std::env::var_os("NVSHARE_DEBUG_SWAP_BY").is_some() {
            command.env_remove("NVSHARE_DEBUG_SWAP_BY").env("NVSHARE_DEBUG_SWAP_EVERY", "4ms");
        }
        // SAFETY: fcntl is async-signal-safe, and the closure touches no memory of the parent.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().expect("this executable again");
        Peer { _child: child, socket: BufReader::new(ours) }
    }

    /// Tells it something; what it answers.
    fn ask(&mut self, what: &str) -> String {
        let mut answer = String::new();
        writeln!(self.socket.get_mut(), "{what}").expect("the second process listens");
        self.socket.read_line(&mut answer).expect("the second process answers");
        answer.trim_end().to_owned()
    }
}

fn ask(what: &str) -> String {
    peer().get_or_insert_with(Peer::start).ask(what)
}

/// Nothing of a script stays for the next one.
pub(crate) fn restore() {
    if let Some(peer) = peer().as_mut() {
        assert_eq!(peer.ask("restore"), "restored");
    }
}

impl World {
    pub(crate) fn run_lent(&mut self, op: &Op) -> Option<String> {
        let ends = ["free", "free_async", "ctx_destroy", "release", "reset"].contains(&op.verb());
        if ends {
            // What is freed while another process has it open is undefined.
            self.take_back();
        }
        if !["lend", "lent_set", "lent_hash", "lent_range", "unlend"].contains(&op.verb()) {
            return None;
        }
        let slot = op.args[0] as usize % MEMORIES;
        if self.beside_others || !self.captured.is_empty() {
            return None;
        }
        let [at, bytes, value] = [1, 2, 3].map(|index| op.args.get(index).copied().unwrap_or(0));
        let memory = self.memories[slot].as_mut()?;
        let inside = bytes > 0 && at.checked_add(bytes).is_some_and(|end| end <= memory.bytes);
        if op.verb() == "lend" {
            if memory.gone || !memory.known || self.lent.contains(&slot) {
                return None;
            }
            let (start, device) = (memory.start, memory.device);
            // SAFETY: all zero is a valid value of this plain struct.
            let mut handle: CUipcMemHandle = unsafe { std::mem::zeroed() };
            let code = cu!(cuIpcGetMemHandle(&raw mut handle, start + at % memory.bytes.max(1)));
            if code != 0 {
                return Some(code.to_string());
            }
            let text = handle.reserved.map(|byte| format!("{:02x}", byte as u8)).concat();
            let opened = ask(&format!("open {slot} {device} {text}"));
            if opened == "0" {
                self.lent.insert(slot);
            }
            return Some(format!("{code} opened {opened}"));
        }
        if !self.lent.contains(&slot) || memory.gone {
            return None;
        }
        let last = memory.last.take();
        self.settle(last);
        Some(match op.verb() {
            "lent_set" if inside => ask(&format!("set {slot} {at} {bytes} {}", value % 256)),
            "lent_hash" if inside => ask(&format!("hash {slot} {at} {bytes}")),
            "lent_range" => ask(&format!("range {slot} {at}")),
            "unlend" => {
                self.lent.remove(&slot);
                ask(&format!("close {slot}"))
            }
            _ => return None,
        })
    }

    /// The second process closes all that it has open.
    pub(crate) fn take_back(&mut self) {
        for slot in std::mem::take(&mut self.lent) {
            let last = self.memories[slot].as_mut().and_then(|memory| memory.last.take());
            self.settle(last);
            ask(&format!("close {slot}"));
        }
    }
}

/// The second process's life, if this is one.
pub(crate) fn serve() -> bool {
    let Some(number) = std::env::var(SOCKET).ok().and_then(|number| number.parse().ok()) else {
        return false;
    };
    // SAFETY: inherited for this, and nobody else's.
    let mut socket = unsafe { UnixStream::from_raw_fd(number) };
    let mut heard = BufReader::new(socket.try_clone().expect("another descriptor"));
    let mut other = Other::default();
    assert_eq!(cu!(cuInit(0)), 0, "cuInit");
    let mut line = String::new();
    while heard.read_line(&mut line).is_ok_and(|length| length > 0) {
        let answer = other.obey(&line.split_whitespace().collect::<Vec<_>>());
        if writeln!(socket, "{answer}").is_err() {
            break;
        }
        line.clear();
    }
    true
}

/// What the second process has.
#[derive(Default)]
struct Other {
    /// By slot: where it is open, and under which context.
    open: BTreeMap<usize, (u64, usize)>,
    /// By device: its primary context, and memory of its own.
    devices: BTreeMap<usize, (usize, u64)>,
}

impl Other {
    fn obey(&mut self, words: &[&str]) -> String {
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let slot = number(1) as usize;
        match words[0] {
            "open" => self.open(slot, number(2) as usize, words[3]),
            "restore" => {
                self.restore();
                "restored".to_owned()
            }
            what => {
                let Some((start, device)) = self.open.get(&slot).copied() else {
                    return "not open".to_owned();
                };
                self.current(device);
                let (at, bytes) = (start + number(2), number(3) as usize);
                match what {
                    "set" => {
                        let set = cu!(cuMemsetD8_v2(at, number(4) as u8, bytes));
                        format!("{set} {}", cu!(cuCtxSynchronize()))
                    }
                    "hash" => {
                        let mut read = vec![0; bytes];
                        let code = cu!(cuMemcpyDtoH_v2(read.as_mut_ptr().cast(), at, bytes));
                        format!("{code} {:x} own {}", hash(&read), self.own(device))
                    }
                    "range" => {
                        let (mut base, mut size) = (0, 0);
                        let code = cu!(cuMemGetAddressRange_v2(&raw mut base, &raw mut size, at));
                        format!("{code} {} {size}", base.wrapping_sub(start))
                    }
                    _ => {
                        self.open.remove(&slot);
                        cu!(cuIpcCloseMemHandle(start)).to_string()
                    }
                }
            }
        }
    }

    /// Makes the device's context current; the first time it and memory of its own are made.
    fn current(&mut self, device: usize) {
        let (context, _) = *self.devices.entry(device).or_insert_with(|| {
            let (mut context, mut own) = (std::ptr::null_mut(), 0);
            cu!(cuDevicePrimaryCtxRetain(&raw mut context, device as i32));
            cu!(cuCtxSetCurrent(context));
            cu!(cuMemAlloc_v2(&raw mut own, OWN));
            cu!(cuMemsetD8_v2(own, 0x5a, OWN));
            (context as usize, own)
        });
        cu!(cuCtxSetCurrent(context as sys::CUcontext));
    }

    fn open(&mut self, slot: usize, device: usize, text: &str) -> String {
        self.current(device);
        // SAFETY: all zero is a valid value of this plain struct.
        let mut handle: CUipcMemHandle = unsafe { std::mem::zeroed() };
        for (index, byte) in handle.reserved.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).expect("hexadecimal") as _;
        }
        let mut start = 0;
        let code = cu!(cuIpcOpenMemHandle_v2(&raw mut start, handle, 1));
        if code == 0 {
            self.open.insert(slot, (start, device));
        }
        code.to_string()
    }

    /// Whether its own memory is as it was.
    fn own(&self, device: usize) -> &'static str {
        let mut read = vec![0_u8; OWN];
        let code = cu!(cuMemcpyDtoH_v2(read.as_mut_ptr().cast(), self.devices[&device].1, OWN));
        if code == 0 && read.iter().all(|byte| *byte == 0x5a) { "right" } else { "wrong" }
    }

    fn restore(&mut self) {
        for (start, device) in std::mem::take(&mut self.open).into_values() {
            self.current(device);
            cu!(cuIpcCloseMemHandle(start));
        }
        let devices: BTreeSet<usize> = self.devices.keys().copied().collect();
        for device in devices {
            let (_, own) = self.devices[&device];
            self.current(device);
            cu!(cuMemFree_v2(own));
            cu!(cuCtxSetCurrent(std::ptr::null_mut()));
            cu!(cuDevicePrimaryCtxRelease_v2(device as i32));
        }
        self.devices.clear();
    }
}
