//! Another process with a context of its own on the same card, which does what it is told, a line at a time.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Context, DRIVER, Word, free_bytes};
use crate::{call, ok};

/// `CUipcMemHandle` and its like.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(pub(crate) [u8; 64]);

impl Ticket {
    pub(crate) const NONE: Ticket = Ticket([0; 64]);
}

/// The other process. It ends with this.
pub(crate) struct Peer {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

const ROLE: &str = "NVSHARE_TEST_ROLE";

impl Peer {
    /// Starts it: the test `role` of this binary again, which must call [`obey`].
    pub(crate) fn start() -> Peer {
        let mut process = Command::new(std::env::current_exe().expect("this executable"))
            .args(["role", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, "peer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this executable again");
        let orders = process.stdin.take().expect("its input");
        let answers = BufReader::new(process.stdout.take().expect("its output")).lines();
        let mut peer = Peer { process, orders, answers };
        peer.answer();
        peer
    }

    fn answer(&mut self) -> Vec<Word> {
        loop {
            let line = self.answers.next().expect("it ended early").expect("its output");
            if let Some(answer) = line.split_once("answer:").map(|(_, answer)| answer) {
                return answer.split_whitespace().map(|word| word.parse().expect("a number")).collect();
            }
        }
    }

    /// Tells it to do something: what it answers, an error code first where the call has one.
    pub(crate) fn tell(&mut self, what: &str, about: &[Word]) -> Vec<Word> {
        let words: Vec<String> = about.iter().map(Word::to_string).collect();
        writeln!(self.orders, "{what} {}", words.join(" ")).expect("it reads");
        self.answer()
    }

    /// The same, where the answer is one number.
    pub(crate) fn ask(&mut self, what: &str, about: &[Word]) -> Word {
        let answer = self.tell(what, about);
        assert_eq!(answer.len(), 1, "{what}: {answer:?}");
        answer[0]
    }

    /// The same, where the answer is a ticket, which it must give.
    pub(crate) fn ticket(&mut self, what: &str, of: Word) -> Ticket {
        let answer = self.tell(what, &[of]);
        assert_eq!(answer[0], 0, "{what}");
        Ticket(answer[1..].iter().map(|byte| *byte as u8).collect::<Vec<_>>().try_into().expect("64 bytes"))
    }

    /// The same, where the answer is one of its descriptors: a duplicate of it.
    pub(crate) fn descriptor(&mut self, what: &str, of: Word) -> OwnedFd {
        let theirs = self.ask(what, &[of]) as i32;
        let pid = self.process.id() as i32;
        // SAFETY: system calls on numbers; what comes back is this process's own from here on.
        unsafe {
            let process = OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32);
            let process = std::os::fd::AsRawFd::as_raw_fd(&process);
            let got = libc::syscall(libc::SYS_pidfd_getfd, process, theirs, 0) as i32;
            assert!(got >= 0, "pidfd_getfd: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(got)
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it was killed");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn with_ticket(answer: u32, ticket: Ticket) -> Vec<Word> {
    std::iter::once(Word::from(answer)).chain(ticket.0.map(Word::from)).collect()
}

/// What the other process is: nothing where this is not one.
pub(crate) fn obey() {
    if std::env::var(ROLE).as_deref() != Ok("peer") {
        return;
    }
    let context = Context::new();
    println!("answer:");
    for line in std::io::stdin().lines() {
        let line = line.expect("an order");
        let mut words = line.split_whitespace();
        let what = words.next().expect("an order");
        let about: Vec<Word> = words.map(|word| word.parse().expect("a number")).collect();
        let answer: Vec<String> = act(&context, what, &about).iter().map(Word::to_string).collect();
        println!("answer: {}", answer.join(" "));
    }
    std::mem::forget(context);
}

fn act(context: &Context, what: &str, about: &[Word]) -> Vec<Word> {
    let ticket = || Ticket(about.iter().map(|byte| *byte as u8).collect::<Vec<_>>().try_into().expect("64"));
    let (mut made, mut given): (Word, Ticket) = (0, Ticket::NONE);
    let answer = match what {
        "allocate" => {
            let start = context.device(about[0] as usize);
            ok!(cuMemsetD8_v2(start, about[1] as u8, about[0] as usize));
            ok!(cuCtxSynchronize());
            return vec![start];
        }
        "free" => call!(cuMemFree_v2(about[0])),
        "byte" => {
            let mut byte = 0_u8;
            ok!(cuMemcpyDtoH_v2(&raw mut byte, about[0], 1_usize));
            return vec![byte.into()];
        }
        "handle" => {
            let answer = call!(cuIpcGetMemHandle(&raw mut given, about[0]));
            return with_ticket(answer, given);
        }
        "open" => {
            let answer = call!(cuIpcOpenMemHandle_v2(&raw mut made, ticket(), 1_u32));
            return vec![answer.into(), made];
        }
        "close" => call!(cuIpcCloseMemHandle(about[0])),
        "event" => {
            ok!(cuEventCreate(&raw mut made, 6_u32));
            return vec![made];
        }
        "event-handle" => {
            let answer = call!(cuIpcGetEventHandle(&raw mut given, about[0]));
            return with_ticket(answer, given);
        }
        "destroy-event" => call!(cuEventDestroy_v2(about[0])),
        "record" => call!(cuEventRecord(about[0], 0_u64)),
        "synchronize" => call!(cuEventSynchronize(about[0])),
        "query" => call!(cuEventQuery(about[0])),
        "finish" => call!(cuCtxSynchronize()),
        "set" => call!(cuMemsetD8_v2(about[0], about[1] as u8, 1_usize)),
        "wait-flag" => context.launch(0, "nvshare_wait_flag", about),
        "store" => context.launch(0, "nvshare_store", &[about[0], 1, about[1]]),
        "store-late" => context.launch(0, "nvshare_store_late", &[about[0], 1, about[1], about[2]]),
        "pool" => {
            let properties =
                [1_u32, about[0] as u32, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            ok!(cuMemPoolCreate(&raw mut made, properties.as_ptr()));
            return vec![made];
        }
        "export-pool" => {
            let mut descriptor = -1_i32;
            ok!(cuMemPoolExportToShareableHandle(&raw mut descriptor, about[0], 1_u32, 0_u64));
            return vec![descriptor as Word];
        }
        "piece" => {
            ok!(cuMemAllocFromPoolAsync(&raw mut made, about[1] as usize, about[0], 0_u64));
            ok!(cuMemsetD8_v2(made, about[2] as u8, about[1] as usize));
            ok!(cuCtxSynchronize());
            return vec![made];
        }
        "piece-handle" => {
            let answer = call!(cuMemPoolExportPointer(&raw mut given, about[0]));
            return with_ticket(answer, given);
        }
        "free-piece" => call!(cuMemFreeAsync(about[0], 0_u64)),
        "export" => {
            // Two MiB of physical memory, which nobody but the descriptor keeps.
            let mut properties = [0_u32; 8];
            (properties[0], properties[1], properties[2]) = (1, 1, 1);
            let (mut handle, mut descriptor, bytes) = (0_u64, -1_i32, 2_usize << 20);
            ok!(cuMemAddressReserve(&raw mut made, bytes, 0_usize, 0_u64, 0_u64));
            ok!(cuMemCreate(&raw mut handle, bytes, properties.as_ptr(), 0_u64));
            ok!(cuMemMap(made, bytes, 0_usize, handle, 0_u64));
            ok!(cuMemSetAccess(made, bytes, [1_u32, 0, 3].as_ptr(), 1_usize));
            ok!(cuMemsetD8_v2(made, about[0] as u8, bytes));
            ok!(cuCtxSynchronize());
            ok!(cuMemExportToShareableHandle(&raw mut descriptor, handle, 1_u32, 0_u64));
            ok!(cuMemUnmap(made, bytes));
            ok!(cuMemRelease(handle));
            return vec![descriptor as Word];
        }
        _ => panic!("what is {what}?"),
    };
    vec![answer.into()]
}

// What both sides of a test look at.

pub(crate) fn byte(address: Word) -> u8 {
    let mut byte = 0_u8;
    ok!(cuMemcpyDtoH_v2(&raw mut byte, address, 1_usize));
    byte
}

pub(crate) fn fill(address: Word, value: u8, bytes: usize) {
    ok!(cuMemsetD8_v2(address, value, bytes));
    ok!(cuCtxSynchronize());
}

pub(crate) fn is_known(address: Word) -> bool {
    let mut kind = 0_u32;
    call!(cuPointerGetAttribute(&raw mut kind, 2_u32, address)) == 0
}

pub(crate) fn range(address: Word) -> (Word, usize) {
    let (mut start, mut bytes) = (0, 0);
    ok!(cuMemGetAddressRange_v2(&raw mut start, &raw mut bytes, address));
    (start, bytes)
}

/// The violations of this test, which has a card of its own.
pub(crate) fn only_violation() -> String {
    let mut violations = DRIVER.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    violations.remove(0)
}

/// What is free once those who were killed are forgotten.
pub(crate) fn until_free(bytes: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    while free_bytes() != bytes {
        assert!(Instant::now() < end, "{} bytes are free", free_bytes());
        std::thread::sleep(Duration::from_millis(1));
    }
}
