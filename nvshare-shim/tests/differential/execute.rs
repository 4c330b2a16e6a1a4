//! The client program: does scripts one after the other and writes down what came of each step.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::peer;
use crate::script::{Op, Script};
use crate::world::{Capture, MEMORIES, World, cu};

/// Runs all scripts of a file. Each step's line is written when it is done, so that it is known where a run ended.
pub(crate) fn all(scripts: &str, transcript: &str) {
    let text = std::fs::read_to_string(scripts).expect("the scripts");
    let mut out = File::create(transcript).expect("a file for the transcript");
    let swaps = std::env::var("NVSHARE_DIFFERENTIAL_SWAPS").ok().and_then(|number| number.parse().ok());
    assert_eq!(cu!(cuInit(0)), 0, "cuInit");
    for script in Script::parse_all(&text).expect("scripts") {
        writeln!(out, "# {}", script.seed).expect("the transcript");
        if script.free {
            freely(&script, swaps, &mut out);
        } else {
            in_order(&script, swaps, &mut out);
        }
        restore();
    }
    writeln!(out, "# end").expect("the transcript");
}

/// A thread of the script: gets steps, does them, answers.
struct Worker {
    ask: Sender<Op>,
    answers: Receiver<String>,
}

fn in_order(script: &Script, swaps: Option<i32>, out: &mut File) {
    let world = Arc::new(Mutex::new(World::new(swaps)));
    std::thread::scope(|scope| {
        let workers: Vec<Worker> = (0..script.threads())
            .map(|_| {
                let ((ask, asked), (answer, answers)) = (channel::<Op>(), channel());
                let world = Arc::clone(&world);
                scope.spawn(move || {
                    for op in asked {
                        let said = world.lock().unwrap_or_else(PoisonError::into_inner).run(&op);
                        if answer.send(said).is_err() {
                            return;
                        }
                    }
                });
                Worker { ask, answers }
            })
            .collect();
        for op in &script.ops {
            let worker = &workers[op.thread];
            writeln!(out, "{op}").expect("the transcript");
            worker.ask.send(op.clone()).expect("a worker");
            writeln!(out, "    {}", worker.answers.recv().expect("an answer")).expect("the transcript");
        }
        // What is still being captured is ended by who began it.
        let open: Vec<Op> = ends(&world.lock().unwrap_or_else(PoisonError::into_inner));
        for op in open {
            let worker = &workers[op.thread];
            worker.ask.send(op.clone()).expect("a worker");
            writeln!(out, "{op}\n    {}", worker.answers.recv().expect("an answer")).expect("the transcript");
        }
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        write!(out, "{}", ending(&mut world)).expect("the transcript");
    });
}

fn freely(script: &Script, swaps: Option<i32>, out: &mut File) {
    let one_at_a_time = Arc::new(Mutex::new(()));
    let said: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..script.threads())
            .map(|thread| {
                let one_at_a_time = Arc::clone(&one_at_a_time);
                let ops: Vec<&Op> = script.ops.iter().filter(|op| op.thread == thread).collect();
                scope.spawn(move || {
                    let mut world = World::new(swaps);
                    world.beside_others = true;
                    let mut said = String::new();
                    for op in ops {
                        // Orders to swap take turns; everything else does not.
                        let turn = (op.verb() == "swap").then(|| one_at_a_time.lock());
                        let answer = world.run(op);
                        drop(turn);
                        let _ = writeln!(said, "{op}\n    {answer}");
                    }
                    for op in ends(&world) {
                        let answer = world.run(&op);
                        let _ = writeln!(said, "{op}\n    {answer}");
                    }
                    said + &ending(&mut world)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread of the script")).collect()
    });
    for text in said {
        write!(out, "{text}").expect("the transcript");
    }
}

/// Steps that end what is still being captured.
fn ends(world: &World) -> Vec<Op> {
    let free = (0..world.graphs.len()).filter(|slot| world.graphs[*slot].is_none());
    let mut captures: Vec<_> = world.captured.values().collect();
    captures.sort_by_key(|capture| capture.stream);
    let end =
        |(capture, slot): (&&Capture, usize)| Op::new(capture.thread, "end", &[capture.stream, slot as u64]);
    captures.iter().zip(free).map(end).collect()
}

/// What is in memory at the end; then everything goes.
fn ending(world: &mut World) -> String {
    let mut said = String::new();
    for slot in 0..MEMORIES {
        if world.memories[slot].is_some() {
            let _ = writeln!(said, "    memory {slot} {}", world.contents(slot));
        }
    }
    world.take_back();
    world.settle_all();
    said += &world.clear();
    for pool in world.pools.iter_mut().filter(|pool| !pool.is_null()) {
        let _ = writeln!(
            said,
            "    pool {}",
            cu!(cuMemPoolDestroy(std::mem::replace(pool, std::ptr::null_mut())))
        );
    }
    said
}

/// Nothing of a script stays for the next one.
fn restore() {
    peer::restore();
    cu!(cuCtxSetCurrent(std::ptr::null_mut()));
    for device in 0..2 {
        let (mut flags, mut active) = (0, 1);
        cu!(cuDevicePrimaryCtxReset_v2(device));
        for _ in 0..64 {
            if cu!(cuDevicePrimaryCtxRelease_v2(device)) != 0 {
                break;
            }
        }
        cu!(cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active));
        assert_eq!(active, 0, "the primary context of device {device} stays");
        cu!(cuDeviceGraphMemTrim(device));
        let mut pool = std::ptr::null_mut();
        cu!(cuDeviceGetDefaultMemPool(&raw mut pool, device));
        let mut none = 0_u64;
        let threshold = cudarc::driver::sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        cu!(cuMemPoolSetAttribute(pool, threshold, (&raw mut none).cast()));
    }
}
