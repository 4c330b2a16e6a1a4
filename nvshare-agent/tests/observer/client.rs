//! A program that makes driver calls as it is told: the test binary itself, started again in this role.

#![expect(unsafe_code, reason = "the functions of a library are called")]

use std::ffi::c_void;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Says which library to load; set only in the role.
const LIBRARY: &str = "NVSHARE_TEST_CLIENT_LIBRARY";

/// A running client. It does what is written to it, line by line, and answers each line when it is done.
pub(crate) struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Client {
    /// Starts one that has loaded `library`.
    pub(crate) fn start(library: &Path) -> Client {
        Client::prepared(library, |_| ())
    }

    /// Starts one that has loaded `library`, by a command that was prepared like this.
    pub(crate) fn prepared(library: &Path, prepare: impl FnOnce(&mut Command)) -> Client {
        let mut command = Command::new(std::env::current_exe().unwrap());
        prepare(&mut command);
        let mut child = command
            .args(["--exact", "client::role", "--nocapture", "--test-threads=1"])
            .env(LIBRARY, library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut client = Client { child, input, output };
        client.wait_for("ready");
        client
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `call SYMBOL TIMES THREADS [engine]`: that many calls by each of so many threads. `exec`: replaces its program by
    /// a fresh one of the same kind. `fork SYMBOL TIMES`: so many processes, one after another, that make one call each.
    /// `vfork SYMBOL TIMES`: the same with processes that share the memory. `hold SYMBOL TIMES`: the same with processes that stay until it ends. `spawn TIMES`: so many other programs (by vfork). `hook SYMBOL`, `patch OFFSET`: puts a jump to a function of its own there. `open PATH`: another
    /// library. `compare`: makes sure that all functions begin as in the file. `alloc BYTES`, `pitch HEIGHT`, `launch PARAMETER`: one such call. `nest SYMBOL DEPTH`, `begin SYMBOL`, `finish`: one
    /// that calls itself so often; one that is under way; until then. For functions that obey (`losses`).
    pub(crate) fn run(&mut self, line: &str) -> &mut Client {
        writeln!(self.input, "{line}").unwrap();
        self.wait_for(if line == "exec" { "ready" } else { "done" });
        self
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() != 0 {
            if line.trim_end() == word {
                return;
            }
            line.clear();
        }
        panic!("the client ended before it said `{word}`: {:?}", self.child.wait());
    }

    /// Ends it, and waits until it is gone.
    pub(crate) fn end(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }

    /// Kills it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn role() {
    let Some(path) = std::env::var_os(LIBRARY) else { return };
    // SAFETY: the library's initialisers are none, or the simulator's.
    let library = unsafe { libloading::Library::new(&path) }.unwrap();
    println!("\nready");
    let mut under_way = None;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["exec"] => {
                use std::os::unix::process::CommandExt;
                let arguments: Vec<String> = std::env::args().skip(1).collect();
                panic!("{}", Command::new("/proc/self/exe").args(arguments).exec());
            }
            ["call", symbol, times, threads, ref engine @ ..] => {
                let engine = !engine.is_empty();
                let call = function(&library, symbol);
                let times: u64 = times.parse().unwrap();
                let threads: u64 = threads.parse().unwrap();
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        let name = if engine { "nvshare:swap0" } else { "nvshare-worker" };
                        let work = move || {
                            // Pointers, since some write through the first two before they look at anything.
                            let (mut out, mut second) = ([0_u64; 32], 0_u64);
                            for _ in 0..times {
                                call(&mut out, &raw mut second as u64, &[0; 4], 1);
                            }
                        };
                        std::thread::Builder::new().name(name.into()).spawn_scoped(scope, work).unwrap();
                    }
                });
            }
            ["alloc", bytes] => {
                let mut out = [0_u64; 32];
                function(&library, "cuMemAlloc_v2")(&mut out, bytes.parse().unwrap(), &[0; 4], 1);
            }
            ["pitch", height] => {
                let (mut out, mut pitch) = ([0_u64; 32], 0_u64);
                // SAFETY: the function's signature in cuda.h, as far as it matters.
                let pitched = unsafe {
                    *library
                        .get::<extern "C" fn(&mut [u64; 32], &mut u64, u64, u64) -> i32>(
                            b"cuMemAllocPitch_v2",
                        )
                        .unwrap()
                };
                pitched(&mut out, &mut pitch, 100, height.parse().unwrap());
            }
            ["fork", symbol, times] => {
                let call = function(&library, symbol);
                for _ in 0..times.parse::<u32>().unwrap() {
                    fork(call);
                }
            }
            ["hold", symbol, times] => {
                let call = function(&library, symbol);
                for _ in 0..times.parse::<u32>().unwrap() {
                    hold(call);
                }
            }
            ["vfork", symbol, times] => {
                let call = function(&library, symbol);
                for _ in 0..times.parse::<u32>().unwrap() {
                    vfork(call);
                }
            }
            ["spawn", times] => {
                for _ in 0..times.parse::<u32>().unwrap() {
                    assert!(Command::new("/bin/true").status().unwrap().success());
                }
            }
            ["hook", symbol] => hook(function(&library, symbol) as *const u8),
            ["patch", offset] => hook(in_memory(&path, offset.parse().unwrap())),
            // SAFETY: a fake, without initialisers.
            ["open", path] => std::mem::forget(unsafe { libloading::Library::new(path) }.unwrap()),
            ["compare"] => compare(&library, &path),
            ["nest", symbol, depth] => obey(function(&library, symbol), [0, depth.parse().unwrap()]),
            ["begin", symbol] => under_way = Some(begin(function(&library, symbol))),
            ["finish"] => {
                let (thread, orders) = under_way.take().expect("a call under way");
                orders.store(0, Ordering::SeqCst);
                thread.join().unwrap();
            }
            ["launch", parameter] => launch(&library, parameter.parse().unwrap()),
            _ => panic!("what is `{line}`?"),
        }
        println!("done");
    }
}

type Call = extern "C" fn(&mut [u64; 32], u64, &[u64; 4], u64) -> i32;

fn function(library: &libloading::Library, symbol: &str) -> Call {
    // SAFETY: all the fakes take whatever is in the registers.
    unsafe { *library.get::<Call>(symbol.as_bytes()).unwrap() }
}

/// One call of a function that obeys these orders.
fn obey(call: Call, orders: [u64; 2]) {
    let (mut out, mut second) = ([0_u64; 32], 0_u64);
    let orders = [orders[0], orders[1], 0, 0].map(AtomicU64::new);
    // SAFETY: all the fakes take whatever is in the registers.
    let call = unsafe { std::mem::transmute::<Call, Obeying>(call) };
    call(&mut out, &raw mut second as u64, orders.as_ptr(), 1);
}

type Obeying = extern "C" fn(&mut [u64; 32], u64, *const AtomicU64, u64) -> i32;

/// Another thread's call, which is under way when this returns, until its orders are others.
fn begin(call: Call) -> (JoinHandle<()>, &'static AtomicU64) {
    let orders: &'static [AtomicU64; 4] = Box::leak(Box::new([2, 0, 0, 0].map(AtomicU64::new)));
    let thread = std::thread::spawn(move || {
        let (mut out, mut second) = ([0_u64; 32], 0_u64);
        // SAFETY: all the fakes take whatever is in the registers.
        let call = unsafe { std::mem::transmute::<Call, Obeying>(call) };
        call(&mut out, &raw mut second as u64, orders.as_ptr(), 1);
    });
    while orders[0].load(Ordering::SeqCst) != 1 {
        std::thread::yield_now();
    }
    (thread, &orders[0])
}

/// A child that makes one call.
fn fork(call: Call) {
    // SAFETY: the child makes the call, which needs no lock, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let (mut out, mut second) = ([0_u64; 32], 0_u64);
        call(&mut out, &raw mut second as u64, &[0; 4], 1);
        // SAFETY: no arguments that matter.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: our own child, waited for once.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}

/// A child that makes one call and stays until we end; it has made it when this returns.
fn hold(call: Call) {
    let (mut ours, theirs) = std::io::pipe().unwrap();
    // SAFETY: the child makes calls that need no lock, and stays.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let (mut out, mut second) = ([0_u64; 32], 0_u64);
        // SAFETY: plain numbers.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        call(&mut out, &raw mut second as u64, &[0; 4], 1);
        drop(theirs);
        loop {
            // SAFETY: has no arguments.
            unsafe { libc::pause() };
        }
    }
    drop(theirs);
    std::io::copy(&mut ours, &mut std::io::sink()).unwrap();
}

/// A child that makes one call in our memory, while we wait.
fn vfork(call: Call) {
    extern "C" fn child(call: *mut c_void) -> i32 {
        // SAFETY: what the parent passes.
        let call = unsafe { std::mem::transmute::<*mut c_void, Call>(call) };
        let (mut out, mut second) = ([0_u64; 32], 0_u64);
        call(&mut out, &raw mut second as u64, &[0; 4], 1);
        0
    }
    let mut stack = vec![0_u128; 16 << 10];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: a stack of its own, which lives until the child has ended, for which the kernel makes us wait; the call needs
    // no lock and nothing of its thread.
    let pid = unsafe { libc::clone(child, stack.as_mut_ptr_range().end.cast(), flags, call as *mut c_void) };
    let mut status = 0;
    // SAFETY: our own child, waited for once.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

/// What a hooked function does instead.
extern "C" fn instead() -> i32 {
    0
}

/// Puts the long jump of communication libraries over what stands there, and the protection back as it was.
fn hook(place: *const u8) {
    let mut jump = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    jump[6..].copy_from_slice(&(instead as *const () as u64).to_ne_bytes());
    let page = (place as usize & !0xfff) as *mut c_void;
    let protect = |protection| {
        // SAFETY: whole pages of a library that is mapped; nothing of ours is in them.
        assert_eq!(unsafe { libc::mprotect(page, 8192, protection) }, 0);
    };
    protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    // SAFETY: writable now, and nobody runs there: this is the only thread that calls the library.
    unsafe { place.cast_mut().copy_from_nonoverlapping(jump.as_ptr(), jump.len()) };
    protect(libc::PROT_READ | libc::PROT_EXEC);
}

/// The executable mapping of the library: where, and from where in the file.
fn mapping(path: &std::ffi::OsStr) -> (u64, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains(" r-xp ") && line.ends_with(path.to_str().unwrap()));
    let fields: Vec<&str> = line.unwrap().split_ascii_whitespace().collect();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    (number(fields[0].split('-').next().unwrap()), number(fields[2]))
}

fn in_memory(path: &std::ffi::OsStr, offset: u64) -> *const u8 {
    let (start, from) = mapping(path);
    (start + offset - from) as *const u8
}

/// What a library that sets hooks does: it reads the first bytes of the functions.
fn compare(library: &libloading::Library, path: &std::ffi::OsStr) {
    let file = std::fs::read(path).unwrap();
    let (start, from) = mapping(path);
    for probe in nvshare_common::probe::PROBES {
        let place = function(library, probe.symbol) as *const u8;
        let offset = (place as u64 - start + from) as usize;
        // SAFETY: code of a library that is mapped.
        let live = unsafe { std::slice::from_raw_parts(place, 32) };
        assert_eq!(live, &file[offset..offset + 32], "{}", probe.symbol);
    }
}

/// `cuLaunchKernel` with two parameters.
fn launch(library: &libloading::Library, parameter: u64) {
    type Launch = extern "C" fn(
        *mut c_void,
        u32,
        u32,
        u32,
        u32,
        u32,
        u32,
        u32,
        *mut c_void,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> i32;
    // SAFETY: the function's signature in cuda.h.
    let launch = unsafe { *library.get::<Launch>(b"cuLaunchKernel").unwrap() };
    let (mut first, mut second) = (parameter, parameter + 1);
    let mut parameters = [(&raw mut first).cast::<c_void>(), (&raw mut second).cast(), std::ptr::null_mut()];
    let null = std::ptr::null_mut();
    launch(null, 1, 1, 1, 1, 1, 1, 0, null, parameters.as_mut_ptr(), std::ptr::null_mut());
}
