//! What a call costs under the uprobes: bare, counted (a launch), and followed to its return with a record (a free). Then what a
//! launch costs each of two that launch at the same time, over what it costs one alone: two threads of one process, and, to
//! compare, two processes, which share nothing of ours; and what it costs with a sample. Needs root and the built eBPF programs
//! (`cargo xtask build`); elsewhere it measures nothing.

#![expect(unsafe_code, reason = "the functions of a library are called")]

#[path = "../tests/observer/fake.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod fake;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use nvshare_agent::observer::{Observer, Options};
use nvshare_common::event::{RECORDS_OF_PROCESS, SAMPLED_PARAMETERS, WINDOW_SHIFT};

use fake::Fake;
use nvshare_agent_core::observation::Seen;

type Free = extern "C" fn(u64) -> i32;
/// Dimensions and the like come between the function and the array of parameters.
type Launch = extern "C" fn(u64, u32, u32, u32, u32, u32, u32, u32, u64, *const *const u64, u64) -> i32;

fn observe(fake: &Fake, sample_every: u32) -> Option<Observer> {
    let (sender, told) = mpsc::channel();
    let object = nvshare_testbed::Artifacts::find().ebpf()?;
    let options =
        Options { libraries: vec![fake.path()], discover: false, sample_every, ..Options::new(object) };
    let tell = move |batch: Vec<Seen>| {
        for seen in batch {
            if let Seen::Observer(health) = seen {
                // Nobody listens after the first.
                let _ = sender.send(health.loaded);
            }
        }
        true
    };
    let observer = Observer::start(options, tell).ok()?;
    told.recv().ok().filter(|loaded| *loaded).map(|_| observer)
}

fn probes(criterion: &mut Criterion) {
    let fake = Fake::new();
    // SAFETY: it has no initialisers.
    let library = unsafe { libloading::Library::new(fake.path()) }.expect("the fake library");
    // SAFETY: the functions' signatures in cuda.h, as far as it matters to registers and the stack.
    let (launch, free) = unsafe {
        let launch = *library.get::<Launch>(b"cuLaunchKernel").expect("a function");
        (launch, *library.get::<Free>(b"cuMemFree_v2").expect("a function"))
    };
    let parameters = [7_u64; SAMPLED_PARAMETERS];
    let launch = || {
        let places = parameters.each_ref().map(std::ptr::from_ref);
        launch(0, 1, 1, 1, 1, 1, 1, 0, 0, places.as_ptr(), 0);
    };
    let free = || {
        free(0);
    };
    let mut group = criterion.benchmark_group("probe");
    group.bench_function("bare", |bench| bench.iter(launch));
    let all: [(&str, &dyn Fn()); 2] = [("launch", &launch), ("free_followed", &free)];
    for (name, call) in all {
        let Some(observer) = observe(&fake, 64) else {
            eprintln!("SKIPPED: no uprobes here (root, cargo xtask build): their cost was not measured");
            return;
        };
        group.bench_function(name, |bench| bench.iter(call));
        observer.stop();
    }
    group.finish();
    if let Some(observer) = observe(&fake, 64) {
        together(&launch);
        observer.stop();
    }
    if let Some(observer) = observe(&fake, 1) {
        sampled(&launch);
        observer.stop();
    }
}

/// In one turn everybody makes so many calls; no process has more samples in a window.
const CALLS: u32 = 8_000;
/// The best of so many turns counts: other programs run here, too.
const TURNS: usize = 300;

/// Prints what a call costs one that is alone, two threads, and two processes.
fn together(call: &(impl Fn() + Sync)) {
    let mut best = [u64::MAX; 3];
    for _ in 0..TURNS {
        let turns = [turn(call, &Ready::of(1)), by_threads(call), by_processes(call)];
        for (best, Turn { begun, ended }) in best.iter_mut().zip(turns) {
            *best = (ended - begun).min(*best);
        }
    }
    let [alone, threads, processes] = best.map(|time| time as f64 / f64::from(CALLS));
    println!(
        "probe/together: a launch costs {alone:.0} ns alone, each of two threads {threads:.0} ns (x {:.2}), each of two \
         processes {processes:.0} ns (x {:.2})",
        threads / alone,
        processes / alone
    );
}

const _: () = assert!((CALLS as u64) < RECORDS_OF_PROCESS);

/// Prints what a sampled launch costs a process that has not had too many samples yet.
fn sampled(call: &impl Fn()) {
    let mut best = u64::MAX;
    for _ in 0..20 {
        // Nor has its container.
        std::thread::sleep(Duration::from_nanos(1 << WINDOW_SHIFT));
        let Turn { begun, ended } = by_processes(call);
        best = best.min(ended - begun);
    }
    println!("probe/together: a launch that is sampled costs {:.0} ns", best as f64 / f64::from(CALLS));
}

/// From when to when the calls were made, in nanoseconds of a clock that all processes share.
#[derive(Clone, Copy)]
struct Turn {
    begun: u64,
    ended: u64,
}

impl Turn {
    /// Of two at the same time: one that waits for the other's processor makes it long.
    fn with(self, other: Turn) -> Turn {
        Turn { begun: self.begun.min(other.begun), ended: self.ended.max(other.ended) }
    }
}

/// Where those that begin together wait for each other, in memory that children share.
struct Ready {
    missing: *mut AtomicU32,
}

impl Ready {
    fn of(count: u32) -> Ready {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: new memory at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "a shared page");
        let ready = Ready { missing: page.cast() };
        ready.missing().store(count, Ordering::SeqCst);
        ready
    }

    fn missing(&self) -> &AtomicU32 {
        // SAFETY: mapped until drop, and an atomic for all who have it.
        unsafe { &*self.missing }
    }

    fn wait(&self) {
        self.missing().fetch_sub(1, Ordering::SeqCst);
        while self.missing().load(Ordering::SeqCst) != 0 {
            std::hint::spin_loop();
        }
    }
}

// SAFETY: a pointer to an atomic.
unsafe impl Sync for Ready {}

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`; nobody of this process has it any more.
        unsafe { libc::munmap(self.missing.cast(), 4096) };
    }
}

fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn turn(call: &impl Fn(), ready: &Ready) -> Turn {
    // What is done once for a thread or a process is no part of a call.
    call();
    ready.wait();
    let begun = now();
    for _ in 0..CALLS {
        call();
    }
    Turn { begun, ended: now() }
}

fn by_threads(call: &(impl Fn() + Sync)) -> Turn {
    let ready = Ready::of(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| turn(call, &ready));
        turn(call, &ready).with(other.join().expect("the other thread"))
    })
}

fn by_processes(call: &impl Fn()) -> Turn {
    let ready = Ready::of(2);
    let (mut from, mut to) = std::io::pipe().expect("a pipe");
    // SAFETY: the child makes calls that need no lock, writes to a descriptor, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let Turn { begun, ended } = turn(call, &ready);
        let done = to.write_all(&[begun, ended].map(u64::to_ne_bytes).concat());
        // SAFETY: no arguments that matter.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    assert!(child > 0, "a child: {}", std::io::Error::last_os_error());
    let this = turn(call, &ready);
    let mut word = [0; 8];
    let [begun, ended] = [(); 2].map(|()| {
        from.read_exact(&mut word).expect("the child's times");
        u64::from_ne_bytes(word)
    });
    // SAFETY: our own child, waited for once.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    this.with(Turn { begun, ended })
}

criterion_group!(benches, probes);
criterion_main!(benches);
