//! A full stream with a thread blocked in it, as an H200 with driver 580 showed it.

mod client;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use client::{Context, Word, set_flag};

/// A call of the driver, to be made in a thread of its own.
type Call = Box<dyn FnOnce() -> u32 + Send>;

const MIB: usize = 1 << 20;
const NOT_READY: u32 = 600;
/// What is not blocked has answered by then, even on a loaded machine.
const LONG: Duration = Duration::from_secs(20);

/// Acts in a thread of its own with the context current.
fn beside(context: Word, act: impl FnOnce() -> u32 + Send + 'static) -> Receiver<u32> {
    let (answer, answers) = channel();
    std::thread::spawn(move || {
        ok!(cuCtxSetCurrent(context));
        let _ = answer.send(act());
    });
    answers
}

/// Submits from a thread behind a kernel that waits; how often it came through so far.
fn fill(
    context: &Context,
    stream: Word,
    flag: &[u64],
    most: u64,
    submit: impl Fn() -> u32 + Send + 'static,
) -> (std::sync::Arc<AtomicU64>, Receiver<u32>) {
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    let count = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&count);
    let ended = beside(context.handle, move || {
        (0..most)
            .map(|_| submit())
            .inspect(|_| {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .max()
            .unwrap_or(0)
    });
    // Until nothing came through for a while.
    let mut before = u64::MAX;
    loop {
        let now = count.load(Ordering::SeqCst);
        if now == before && now > 0 {
            return (count, ended);
        }
        before = now;
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn launcher(function: Word, stream: Word) -> impl Fn() -> u32 + Send + 'static {
    move || client::launch(function, stream, &[0])
}

#[test]
fn a_stream_takes_1021_launches_or_copies_behind_a_kernel_that_waits() {
    let context = Context::new();
    let (stream, flag) = (context.stream(1), context.pinned(4096));
    let (device, host) = (context.device(4096), context.pinned(4096).as_ptr() as Word);
    let copy = move || call!(cuMemcpyHtoDAsync_v2(device, host, 4096_usize, stream));
    for round in 0..2 {
        flag[0] = 0;
        let launch = launcher(context.function("nvshare_spin"), stream);
        let (count, ended) = match round {
            0 => fill(&context, stream, flag, 3000, launch),
            _ => fill(&context, stream, flag, 3000, copy),
        };
        assert_eq!(count.load(Ordering::SeqCst), 1021);
        set_flag(flag);
        assert_eq!(ended.recv_timeout(LONG), Ok(0));
        ok!(cuStreamSynchronize(stream));
    }
}

#[test]
fn records_of_events_and_waits_for_them_take_no_room() {
    let context = Context::new();
    let (stream, flag, event) = (context.stream(1), context.pinned(4096), context.event());
    flag[0] = 0;
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    let done = beside(context.handle, move || {
        (0..20_000)
            .map(|_| call!(cuEventRecord(event, stream)) + call!(cuStreamWaitEvent(stream, event, 0_u32)))
            .sum()
    });
    assert_eq!(done.recv_timeout(LONG), Ok(0));
    assert_eq!(call!(cuStreamQuery(stream)), NOT_READY);
    set_flag(flag);
    ok!(cuStreamSynchronize(stream));
}

#[test]
fn a_thread_blocked_in_a_full_stream_blocks_questions_of_it_and_what_makes_and_ends_things() {
    let context = Context::new();
    let (stream, other, idle) = (context.stream(1), context.stream(1), context.stream(1));
    let (flag, event, own) = (context.pinned(4096), context.event(), context.event());
    let (device, kept, host) =
        (context.device(4096), context.device(4096), context.pinned(4096).as_ptr() as Word);
    let function = context.function("nvshare_spin");
    let mapped = client::vmm(2 * MIB);
    flag[0] = 0;
    ok!(cuEventRecord(own, other));
    let (_, filler) = fill(&context, stream, flag, 3000, launcher(function, stream));

    // These go on.
    let launch_elsewhere = launcher(function, other);
    let free: Vec<(&str, Call)> = vec![
        ("query of another", Box::new(move || call!(cuStreamQuery(idle)))),
        ("query of the legacy stream", Box::new(|| call!(cuStreamQuery(1_u64)))),
        ("record in another", Box::new(move || call!(cuEventRecord(own, other)))),
        ("launch in another", Box::new(launch_elsewhere)),
        ("copy in another", Box::new(move || call!(cuMemcpyHtoDAsync_v2(device, host, 4096_usize, other)))),
        ("question of an event", Box::new(move || call!(cuEventQuery(own)) % NOT_READY)),
        (
            "is it captured",
            Box::new(move || {
                let mut status = 0_u32;
                call!(cuStreamIsCapturing(stream, &raw mut status))
            }),
        ),
        (
            "memory's sizes",
            Box::new(move || {
                let (mut free, mut total) = (0_usize, 0_usize);
                call!(cuMemGetInfo_v2(&raw mut free, &raw mut total))
            }),
        ),
        ("unmap", Box::new(move || call!(cuMemUnmap(mapped.start, 2 * MIB)))),
        ("map and access", Box::new(move || mapped.map())),
    ];
    for (what, act) in free {
        assert_eq!(beside(context.handle, act).recv_timeout(LONG), Ok(0), "{what}");
    }
    // These do not.
    let blocked: Vec<(&str, u32, Call)> = vec![
        ("query of it", NOT_READY, Box::new(move || call!(cuStreamQuery(stream)))),
        ("record in it", 0, Box::new(move || call!(cuEventRecord(event, stream)))),
        (
            "a new event",
            0,
            Box::new(|| {
                let mut made = 0_u64;
                call!(cuEventCreate(&raw mut made, 0_u32))
            }),
        ),
        (
            "memory",
            0,
            Box::new(|| {
                let mut made = 0_u64;
                call!(cuMemAlloc_v2(&raw mut made, 4096_usize))
            }),
        ),
        (
            "a new stream",
            0,
            Box::new(|| {
                let mut made = 0_u64;
                call!(cuStreamCreate(&raw mut made, 1_u32))
            }),
        ),
        (
            "pinned memory",
            0,
            Box::new(|| {
                let mut made = 0_u64;
                call!(cuMemHostAlloc(&raw mut made, 4096_usize, 0_u32))
            }),
        ),
        ("a free", 0, Box::new(move || call!(cuMemFree_v2(kept)))),
        ("an idle stream's end", 0, Box::new(move || call!(cuStreamDestroy_v2(idle)))),
    ];
    let waiting: Vec<_> = blocked
        .into_iter()
        .map(|(what, expected, act)| (what, expected, beside(context.handle, act)))
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    for (what, _, answer) in &waiting {
        assert!(answer.try_recv().is_err(), "{what} came back");
    }
    set_flag(flag);
    for (what, expected, answer) in waiting {
        let got = answer.recv_timeout(LONG).unwrap_or_else(|_| panic!("{what} is still blocked"));
        // A question that gets through late may find the stream empty.
        assert!(got == expected || (what == "query of it" && got == 0), "{what}: {got}");
    }
    assert_eq!(filler.recv_timeout(LONG), Ok(0));
    ok!(cuCtxSynchronize());
}
