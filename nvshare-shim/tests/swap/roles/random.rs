//! Random work against a model on the host, and many small allocations.

use std::time::Duration;

use cudarc::driver::sys::{self, CUdeviceptr, CUstream};

use crate::gpu::{self, Gpu, alloc, cu, free, others, read, stream, synchronize, write};

/// xorshift64*: good enough to choose operations.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
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
pub(super) fn random(seed: u64, operations: u64) {
    let gpu = Gpu::open();
    let mut random = Random::new(seed);
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
pub(super) fn small(count: u64) {
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
