//! The client programs of these tests: the test binary runs itself with the name of one.

use std::io::Write as _;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUdeviceptr, CUresult, CUstream};

use crate::gpu::{self, Gpu, alloc, cu, free, others, read, stream, synchronize, write};

/// Runs the client program of that name.
pub(crate) fn run(role: &str) {
    match role {
        "random" => random(number("SEED"), number("OPERATIONS")),
        "small" => small(number("COUNT")),
        "freed" => freed_while_written(),
        "ordered" => freed_in_order(),
        "capture" => capture_while_swapped(),
        "quarantine" => freed_during_a_capture(),
        "contexts" => contexts(),
        "devices" => two_devices(),
        "leaving" => one_device_leaves(),
        "scripted" => scripted(),
        "across" => crate::across::role(),
        "refused" => crate::ends::refused(),
        "references" => crate::ends::references(),
        "under gone" => crate::ends::under_gone(),
        "for good" => crate::ends::for_good(),
        "jammed" => crate::waits::jammed(),
        "missing" => crate::waits::missing(),
        _ => panic!("no client program `{role}`"),
    }
}

fn number(name: &str) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name} is missing"))
}

/// xorshift64*: good enough to choose operations.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// An allocation, what it should contain (as 64-bit words), and the stream that works on it.
struct Modelled {
    pointer: CUdeviceptr,
    words: Vec<u64>,
    stream: CUstream,
}

impl Modelled {
    fn check(&self) {
        synchronize(self.stream);
        let bytes = read(self.pointer, self.words.len() * 8);
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            assert_eq!(u64::from_ne_bytes(*word), self.words[index], "word {index} of {:#x}", self.pointer);
        }
    }
}

/// At most this much is allocated at once.
const MOST_WORDS: usize = 3 << 20;

/// Random allocations, frees, copies, memsets and launches, checked against a model on the host.
fn random(seed: u64, operations: u64) {
    let gpu = Gpu::open();
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let streams = [stream(), stream(), stream()];
    let mut all: Vec<Modelled> = Vec::new();
    let mut held = 0;
    for _ in 0..operations {
        let choice = random.below(100);
        if all.is_empty() || (choice < 12 && held < MOST_WORDS) {
            let words = match random.below(10) {
                0..5 => 1 + random.below(4096),
                5..9 => 1 + random.below(200 << 10),
                _ => 1 + random.below(1 << 20),
            } as usize;
            let modelled = Modelled {
                pointer: alloc(words * 8),
                words: vec![0; words],
                stream: streams[random.below(3) as usize],
            };
            assert_eq!(modelled.pointer % 256, 0);
            cu!(cuMemsetD8Async(modelled.pointer, 0, words * 8, modelled.stream));
            held += words;
            all.push(modelled);
            continue;
        }
        let which = random.below(all.len() as u64) as usize;
        if choice < 22 {
            // Freed with work under way: the free waits for it.
            let gone = all.swap_remove(which);
            if random.below(2) == 0 {
                gpu.launch("nvshare_step", gone.stream, &[gone.pointer, gone.words.len() as u64, 1]);
            }
            free(gone.pointer);
            held -= gone.words.len();
            continue;
        }
        let one = &mut all[which];
        let count = one.words.len();
        let from = random.below(count as u64) as usize;
        let length = 1 + random.below((count - from).min(64 << 10) as u64) as usize;
        let at = one.pointer + from as u64 * 8;
        match choice {
            22..40 => {
                let add = random.next();
                gpu.launch("nvshare_step", one.stream, &[at, length as u64, add]);
                for word in &mut one.words[from..from + length] {
                    *word = word.wrapping_add(add);
                }
            }
            40..55 => {
                let value = random.next();
                gpu.launch("nvshare_store", one.stream, &[at, length as u64, value]);
                one.words[from..from + length].fill(value);
            }
            55..65 => {
                synchronize(one.stream);
                let values: Vec<u64> = (0..length as u64).map(|index| random.0 ^ index).collect();
                let bytes: Vec<u8> = values.iter().flat_map(|word| word.to_ne_bytes()).collect();
                write(at, &bytes);
                one.words[from..from + length].copy_from_slice(&values);
            }
            65..72 => {
                cu!(cuMemsetD32Async(at, 0x0101_0101, length * 2, one.stream));
                one.words[from..from + length].fill(0x0101_0101_0101_0101);
            }
            72..80 => {
                // To another allocation, in that one's stream.
                let other = random.below(all.len() as u64) as usize;
                if other != which {
                    synchronize(all[which].stream);
                    let length = length.min(all[other].words.len());
                    let values = all[which].words[from..from + length].to_vec();
                    cu!(cuMemcpyDtoDAsync_v2(all[other].pointer, at, length * 8, all[other].stream));
                    synchronize(all[other].stream);
                    all[other].words[..length].copy_from_slice(&values);
                }
            }
            80..98 => {
                synchronize(one.stream);
                let bytes = read(at, length * 8);
                for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                    assert_eq!(u64::from_ne_bytes(*word), one.words[from + index], "word {}", from + index);
                }
            }
            _ => one.check(),
        }
    }
    for one in &all {
        one.check();
    }
    for one in all {
        free(one.pointer);
    }
}

/// Many allocations of 4 KiB, each with its own contents.
fn small(count: u64) {
    const BYTES: usize = 4096;
    let gpu = Gpu::open();
    // The context and the first slab are there.
    free(alloc(BYTES));
    let before = gpu::free_bytes();
    let pointers: Vec<CUdeviceptr> = (0..count).map(|_| alloc(BYTES)).collect();
    let cost = before - gpu::free_bytes();
    let asked = count as usize * BYTES;
    assert!(cost as f64 <= asked as f64 * 1.1, "{asked} bytes cost {cost}");
    let mut sorted = pointers.clone();
    sorted.sort_unstable();
    assert!(sorted.windows(2).all(|pair| pair[0] + BYTES as u64 <= pair[1]), "two share an address");
    let stream = stream();
    for (index, pointer) in pointers.iter().enumerate().step_by(97) {
        gpu.launch("nvshare_store", stream, &[*pointer, 512, index as u64]);
    }
    synchronize(stream);
    std::thread::sleep(Duration::from_millis(300));
    for (index, pointer) in pointers.iter().enumerate().step_by(97) {
        assert_eq!(others(*pointer, BYTES, index as u64), 0, "allocation {index}");
    }
    let (mut base, mut size) = (0, 0);
    cu!(cuMemGetAddressRange_v2(&raw mut base, &raw mut size, pointers[5] + 100));
    assert_eq!((base, size), (pointers[5], BYTES));
    for pointer in pointers {
        free(pointer);
    }
    assert!(gpu::free_bytes() + (8 << 20) >= before, "what was freed is free");
}

/// Memory is freed while a kernel still writes it; the next allocation must not meet that kernel.
fn freed_while_written() {
    let gpu = Gpu::open();
    let (slow, fast) = (stream(), stream());
    for bytes in [64 << 10, 4 << 20] {
        for _ in 0..4 {
            let first = alloc(bytes);
            gpu.launch("nvshare_store_late", slow, &[first, bytes as u64 / 8, 0xBAD, 60_000_000]);
            free(first);
            let second = alloc(bytes);
            gpu.launch("nvshare_store", fast, &[second, bytes as u64 / 8, 7]);
            synchronize(fast);
            synchronize(slow);
            assert_eq!(
                others(second, bytes, 7),
                0,
                "a kernel wrote into memory that was given to somebody else"
            );
            free(second);
        }
    }
}

/// Plain memory is freed in the order of a stream, while a kernel there still writes it.
fn freed_in_order() {
    let gpu = Gpu::open();
    let (slow, fast) = (stream(), stream());
    for bytes in [64 << 10, 4 << 20] {
        let first = alloc(bytes);
        gpu.launch("nvshare_store_late", slow, &[first, bytes as u64 / 8, 0xBAD, 60_000_000]);
        let began = Instant::now();
        cu!(cuMemFreeAsync(first, slow));
        let waited = began.elapsed();
        let second = alloc(bytes);
        gpu.launch("nvshare_store", fast, &[second, bytes as u64 / 8, 7]);
        synchronize(fast);
        synchronize(slow);
        assert!(waited < Duration::from_millis(50), "a free in stream order waited {waited:?}");
        assert_eq!(others(second, bytes, 7), 0, "a kernel wrote into memory that was given to somebody else");
        free(second);
    }
}

/// A `cuMemFree` beside a capture: it waits for the kernel as the driver's own does (seen on an H200), and leaves the capture
/// alone.
fn freed_during_a_capture() {
    let gpu = Gpu::open();
    let (slow, fast, captured) = (stream(), stream(), stream());
    for bytes in [64 << 10, 4 << 20] {
        let first = alloc(bytes);
        let in_graph = alloc(4096);
        cu!(cuStreamBeginCapture_v2(captured, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED));
        gpu.launch("nvshare_store", captured, &[in_graph, 512, 3]);
        gpu.launch("nvshare_store_late", slow, &[first, bytes as u64 / 8, 0xBAD, 150_000_000]);
        let began = Instant::now();
        free(first);
        let waited = began.elapsed();
        let second = alloc(bytes);
        gpu.launch("nvshare_store", fast, &[second, bytes as u64 / 8, 7]);
        synchronize(fast);
        let mut graph = std::ptr::null_mut();
        cu!(cuStreamEndCapture(captured, &raw mut graph));
        synchronize(slow);
        assert!(waited > Duration::from_millis(50), "a free waited {waited:?} for a kernel of 150 ms");
        assert_eq!(others(second, bytes, 7), 0, "a kernel wrote into memory that was given to somebody else");
        free(second);
        cu!(cuGraphDestroy(graph));
        free(in_graph);
    }
}

/// One thread captures a graph again and again while another allocates and swaps are forced behind both.
fn capture_while_swapped() {
    let gpu = Gpu::open();
    let bytes = 2 << 20;
    let end = Instant::now() + Duration::from_millis(number("MILLISECONDS"));
    let mut context = std::ptr::null_mut();
    cu!(cuCtxGetCurrent(&raw mut context));
    let context = context.expose_provenance();
    let other = std::thread::spawn(move || {
        cu!(cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)));
        let mut rounds = 0_u64;
        while Instant::now() < end {
            let (large, small) = (alloc(3 << 20), alloc(10_000));
            free(large);
            free(small);
            rounds += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        rounds
    });
    let (captured, stream) = (stream(), stream());
    let (buffer, copy) = (alloc(bytes), alloc(bytes));
    let mut expected = 0_u64;
    // Both kernels are loaded before: a driver that loads lazily may not do so in a capture.
    gpu.launch("nvshare_step", stream, &[buffer, bytes as u64 / 8, 0]);
    gpu.launch("nvshare_store", stream, &[buffer, bytes as u64 / 8, 0]);
    synchronize(stream);
    let mut rounds = 0;
    while Instant::now() < end {
        cu!(cuStreamBeginCapture_v2(captured, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for add in 1..=3 {
            gpu.launch("nvshare_step", captured, &[buffer, bytes as u64 / 8, add]);
            std::thread::sleep(Duration::from_millis(5));
            // The driver looks at the addresses of a copy during the call, and nothing may be behind them just then.
            cu!(cuMemcpyDtoDAsync_v2(copy, buffer, bytes, captured));
        }
        let mut graph = std::ptr::null_mut();
        cu!(cuStreamEndCapture(captured, &raw mut graph));
        let mut executable = std::ptr::null_mut();
        cu!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        for _ in 0..3 {
            cu!(cuGraphLaunch(executable, stream));
            expected += 6;
        }
        synchronize(stream);
        assert_eq!(others(buffer, bytes, expected), 0, "a replay went wrong");
        assert_eq!(others(copy, bytes, expected), 0, "a copy in a replay went wrong");
        cu!(cuGraphExecDestroy(executable));
        cu!(cuGraphDestroy(graph));
        rounds += 1;
    }
    let others = other.join().unwrap();
    assert!(rounds > 2 && others > 2, "{rounds} captures, {others} rounds of allocation: somebody hung");
}

/// Contexts come and go, with memory in them that swaps at any moment: what was in one is free after it.
fn contexts() {
    let bytes = 6 << 20;
    let mut free = Vec::new();
    for _ in 0..6 {
        let mut context = std::ptr::null_mut();
        cu!(cuInit(0));
        cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
        let gpu = Gpu::load();
        free.push(gpu::free_bytes());
        let stream = stream();
        let (first, second) = (alloc(bytes), alloc(5000));
        for value in 1..6 {
            gpu.launch("nvshare_store", stream, &[first, bytes as u64 / 8, value]);
            gpu.launch("nvshare_store", stream, &[second, 5000 / 8, value]);
            std::thread::sleep(Duration::from_millis(25));
            synchronize(stream);
            assert_eq!(others(first, bytes, value), 0);
            assert_eq!(others(second, 5000, value), 0);
        }
        cu!(cuCtxDestroy_v2(context));
    }
    // The first one may have paid for things that stay.
    assert!(free[5] >= free[1], "contexts leave memory behind: {free:?}");
}

/// Two devices, worked on in turns.
fn two_devices() {
    cu!(cuInit(0));
    let bytes = 6 << 20;
    let mut all = Vec::new();
    for device in 0..2 {
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&raw mut context, device));
        cu!(cuCtxSetCurrent(context));
        all.push((context, Gpu::load(), stream(), alloc(bytes)));
    }
    for value in 1..40 {
        for (context, gpu, stream, buffer) in &all {
            cu!(cuCtxSetCurrent(*context));
            gpu.launch("nvshare_store", *stream, &[*buffer, bytes as u64 / 8, value]);
        }
        std::thread::sleep(Duration::from_millis(10));
        for (context, _, stream, buffer) in &all {
            cu!(cuCtxSetCurrent(*context));
            synchronize(*stream);
            assert_eq!(others(*buffer, bytes, value), 0);
        }
    }
}

/// Contexts of one device come and go, with the arenas that are pinned in them, while the other device swaps.
fn one_device_leaves() {
    cu!(cuInit(0));
    let bytes = 6 << 20;
    let stays = std::thread::spawn(move || {
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&raw mut context, 1));
        cu!(cuCtxSetCurrent(context));
        let (gpu, stream, buffer) = (Gpu::load(), stream(), alloc(bytes));
        for value in 1..60 {
            gpu.launch("nvshare_store", stream, &[buffer, bytes as u64 / 8, value]);
            std::thread::sleep(Duration::from_millis(7));
            synchronize(stream);
            assert_eq!(others(buffer, bytes, value), 0);
        }
    });
    let mut rounds = 0;
    while !stays.is_finished() || rounds < 3 {
        let mut context = std::ptr::null_mut();
        cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
        let (gpu, stream, buffer) = (Gpu::load(), stream(), alloc(bytes));
        for value in 1..3 {
            gpu.launch("nvshare_store", stream, &[buffer, bytes as u64 / 8, value]);
            std::thread::sleep(Duration::from_millis(20));
            synchronize(stream);
            assert_eq!(others(buffer, bytes, value), 0);
        }
        cu!(cuCtxDestroy_v2(context));
        rounds += 1;
    }
    stays.join().unwrap();
}

/// Obeys lines on standard input, answering each with one line: a test leads it, and plays the agent as well.
#[expect(clippy::too_many_lines, reason = "one arm for each order")]
fn scripted() {
    let gpu = Gpu::open();
    let stream = stream();
    let mut buffers: Vec<(CUdeviceptr, usize)> = Vec::new();
    say("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        match words[0] {
            "alloc" => match gpu::try_alloc(number(1) as usize) {
                Ok(pointer) => {
                    buffers.push((pointer, number(1) as usize));
                    say(&format!("{pointer}"));
                }
                Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => say("out of memory"),
                Err(error) => panic!("{error:?}"),
            },
            // From the driver's own pool, and made by the application itself: neither passes the engine.
            "pool" => {
                let mut pointer = 0;
                // SAFETY: `pointer` is where the answer goes.
                let result = unsafe { sys::cuMemAllocAsync(&raw mut pointer, number(1) as usize, stream) };
                say(gpu::outcome(result));
            }
            "managed" => {
                let mut pointer = 0;
                // SAFETY: `pointer` is where the answer goes; 1 lets every stream use it.
                let result = unsafe { sys::cuMemAllocManaged(&raw mut pointer, number(1) as usize, 1) };
                say(gpu::outcome(result));
            }
            "map_and_release" => say(&format!("{}", gpu::map_and_release(number(1) as usize))),
            "unmap" => {
                cu!(cuMemUnmap(number(1), number(2) as usize));
                say("unmapped");
            }
            "nvml" => {
                let (total, free) = gpu::nvml_memory();
                say(&format!("{total} {free}"));
            }
            "total" => {
                let mut total = 0_usize;
                cu!(cuDeviceTotalMem_v2(&raw mut total, 0));
                say(&format!("{total}"));
            }
            "create" => say(gpu::outcome(gpu::create(number(1) as usize))),
            "store" => {
                let (pointer, bytes) = buffers[number(1) as usize];
                gpu.launch("nvshare_store", stream, &[pointer, bytes as u64 / 8, number(2)]);
                synchronize(stream);
                say("stored");
            }
            "store_part" => {
                let (pointer, _) = buffers[number(1) as usize];
                gpu.launch("nvshare_store", stream, &[pointer + number(2), number(3) / 8, number(4)]);
                synchronize(stream);
                say("stored");
            }
            "wrong" => {
                let (pointer, bytes) = buffers[number(1) as usize];
                say(&format!("{}", others(pointer, bytes, number(2))));
            }
            "free" => {
                free(buffers[number(1) as usize].0);
                say("freed");
            }
            "spin" => {
                gpu.launch("nvshare_spin", stream, &[number(1)]);
                say("spinning");
            }
            "capture" => {
                cu!(cuStreamBeginCapture_v2(
                    stream,
                    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED
                ));
                say("captures");
            }
            "copy" => {
                let ((from, bytes), (to, _)) = (buffers[number(1) as usize], buffers[number(2) as usize]);
                cu!(cuMemcpyDtoDAsync_v2(to, from, bytes, stream));
                say("copied");
            }
            "replay" => {
                let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
                cu!(cuStreamEndCapture(stream, &raw mut graph));
                cu!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
                cu!(cuGraphLaunch(executable, stream));
                synchronize(stream);
                say("replayed");
            }
            "share" => {
                // Asked for before memory is given to other hardware, which keeps its physical pages.
                let on = 1_u32;
                let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_SYNC_MEMOPS;
                cu!(cuPointerSetAttribute((&raw const on).cast(), attribute, buffers[number(1) as usize].0));
                say("shared");
            }
            "info" => {
                let (mut free, mut total) = (0_usize, 0_usize);
                cu!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
                say(&format!("{free} {total}"));
            }
            "open" => {
                let path = std::ffi::CString::new(words[1]).unwrap();
                // SAFETY: a library of the test's own, without code.
                let opened = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
                assert!(!opened.is_null(), "{path:?}");
                say("opened");
            }
            "end" => return,
            other => panic!("no command `{other}`"),
        }
    }
}

/// The calling thread's context, as its number.
pub(crate) fn current() -> usize {
    let mut context = std::ptr::null_mut();
    cu!(cuCtxGetCurrent(&raw mut context));
    context.expose_provenance()
}

/// Makes that context the calling thread's.
pub(crate) fn make_current(context: usize) {
    cu!(cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)));
}

/// Waits for the word of the test that leads this program.
pub(crate) fn await_end() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a word");
    assert_eq!(line.trim(), "end");
}

pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}
