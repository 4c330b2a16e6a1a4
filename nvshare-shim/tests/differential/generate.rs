//! Random scripts. A step names slots that are probably taken, or free, as it needs; where a guess was wrong the step is
//! skipped in both runs, or the driver refuses it, which must then be the same.

use std::collections::BTreeSet;

use crate::script::{Op, Script};
use crate::world::{FIRST_STREAM, MEMORIES, SLOTS};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;

/// splitmix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EED)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a script can be about. With everything at once, most steps would fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Theme {
    Plain,
    Vmm,
    Captures,
    Contexts,
    Arrays,
    Everything,
}

struct Generator {
    random: Random,
    ops: Vec<Op>,
    threads: usize,
    free: bool,
    theme: Theme,
    contexts: BTreeSet<u64>,
    streams: BTreeSet<u64>,
    events: BTreeSet<u64>,
    memories: BTreeSet<u64>,
    sizes: [u64; MEMORIES],
    physicals: BTreeSet<u64>,
    graphs: BTreeSet<u64>,
    executables: BTreeSet<u64>,
    arrays: BTreeSet<u64>,
    capturing: Option<u64>,
    thread: usize,
}

/// The script of a seed. Seeds that end in 9 run freely.
pub(crate) fn script(seed: u64) -> Script {
    let mut random = Random::new(seed);
    let free = seed % 10 == 9;
    let theme = random.pick(&[
        Theme::Plain,
        Theme::Vmm,
        Theme::Captures,
        Theme::Contexts,
        Theme::Arrays,
        Theme::Everything,
        Theme::Plain,
    ]);
    let threads = if free { 3 } else { random.pick(&[1, 1, 2, 3]) };
    let mut generator = Generator {
        random,
        ops: Vec::new(),
        threads,
        free,
        theme,
        contexts: BTreeSet::new(),
        streams: BTreeSet::new(),
        events: BTreeSet::new(),
        memories: BTreeSet::new(),
        sizes: [0; MEMORIES],
        physicals: BTreeSet::new(),
        graphs: BTreeSet::new(),
        executables: BTreeSet::new(),
        arrays: BTreeSet::new(),
        capturing: None,
        thread: 0,
    };
    if free {
        // Each thread has a script of its own, with things of its own.
        let mut ops = Vec::new();
        for thread in 0..threads {
            generator.ops.clear();
            generator.forget();
            generator.thread = thread;
            generator.write(25);
            ops.append(&mut generator.ops);
        }
        return Script { seed, free, ops };
    }
    let length = 30 + generator.random.below(40);
    generator.write(length);
    Script { seed, free, ops: generator.ops }
}

impl Generator {
    fn forget(&mut self) {
        for slots in [
            &mut self.contexts,
            &mut self.streams,
            &mut self.events,
            &mut self.memories,
            &mut self.physicals,
            &mut self.graphs,
            &mut self.executables,
            &mut self.arrays,
        ] {
            slots.clear();
        }
        self.capturing = None;
    }

    fn push(&mut self, verb: &str, args: &[u64]) {
        self.ops.push(Op::new(self.thread, verb, args));
    }

    fn write(&mut self, length: u64) {
        self.push("retain", &[0, 0]);
        self.contexts.insert(0);
        self.push("set", &[0]);
        self.push("module", &[0]);
        if !self.free && self.random.one_in(2) {
            let device = self.random.below(2);
            self.push("ctx_create", &[1, device]);
            self.contexts.insert(1);
            self.push("set", &[1]);
            self.push("module", &[1]);
            self.stream();
            self.push("set", &[0]);
        }
        for _ in 0..2 {
            self.stream();
        }
        if !self.free {
            for thread in 1..self.threads {
                self.thread = thread;
                self.push("set", &[0]);
            }
        }
        for _ in 0..3 {
            self.allocate();
        }
        for _ in 0..length {
            if !self.free {
                self.thread = self.random.below(self.threads as u64) as usize;
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let swaps = if self.free { 12 } else { 5 };
        if self.random.one_in(swaps) {
            let kind = self.random.pick(&[0, 0, 1, 1, 1, 2]);
            self.push("swap", &[kind]);
            return;
        }
        match (self.theme, self.random.below(20)) {
            (_, 0 | 1) => self.allocate(),
            (_, 2) => self.free_one(),
            (_, 3) => self.synchronise(),
            (_, 4..=6) => self.question(),
            (Theme::Vmm, 7..=13) => self.vmm(),
            (Theme::Captures, 7..=11) => self.capture(),
            (Theme::Captures, 12 | 13) => self.graph_memory(),
            (Theme::Arrays, 7..=13) => self.array(),
            (Theme::Contexts, 7..=11) if !self.free => self.context(),
            (Theme::Everything, 7..=9) => self.vmm(),
            (Theme::Everything, 10 | 11) => self.capture(),
            (Theme::Everything, 12) if !self.free => self.context(),
            (Theme::Everything, 13) => self.array(),
            (Theme::Everything, 15) => self.graph_memory(),
            (Theme::Plain, 7) => self.driver_memory(),
            (_, 14) => self.event(),
            _ => self.work(),
        }
    }

    /// A slot that is taken, mostly.
    fn taken(&mut self, of: &BTreeSet<u64>, limit: u64) -> u64 {
        if of.is_empty() || self.random.one_in(30) {
            return self.random.below(limit);
        }
        let all: Vec<u64> = of.iter().copied().collect();
        self.random.pick(&all)
    }

    fn vacant(&mut self, of: &BTreeSet<u64>, limit: u64) -> u64 {
        (0..limit).find(|slot| !of.contains(slot)).unwrap_or_else(|| self.random.below(limit))
    }

    fn memory(&mut self) -> u64 {
        let slots = self.memories.clone();
        self.taken(&slots, MEMORIES as u64)
    }

    /// One of the default streams, or one that was made.
    fn some_stream(&mut self) -> u64 {
        if self.streams.is_empty() || self.random.one_in(4) {
            // Those of all threads, or of a thread: of a script that runs freely only the latter.
            return if self.free { 2 } else { self.random.below(3) };
        }
        let slots = self.streams.clone();
        FIRST_STREAM + self.taken(&slots, SLOTS as u64)
    }

    fn stream(&mut self) {
        let slots = self.streams.clone();
        let (slot, flags) =
            (self.vacant(&slots, SLOTS as u64), if self.free { 1 } else { self.random.below(2) });
        self.push("stream", &[FIRST_STREAM + slot, flags]);
        self.streams.insert(slot);
    }

    fn allocate(&mut self) {
        let slots = self.memories.clone();
        let slot = self.vacant(&slots, MEMORIES as u64);
        let small = 256 + self.random.below(64) * 256;
        let large = MIB + self.random.below(16) * (MIB / 4);
        let bytes = if self.random.one_in(2) { small } else { large };
        self.sizes[slot as usize] = bytes;
        match self.random.below(14) {
            0..=7 => self.push("alloc", &[slot, bytes]),
            8 => {
                let (width, height) = (self.random.below(3000) + 1, self.random.below(200) + 1);
                self.sizes[slot as usize] = width.next_multiple_of(512) * height;
                self.push("pitch", &[slot, width, height]);
            }
            9 => self.push("managed", &[slot, bytes]),
            10 | 11 => {
                let stream = self.some_stream();
                self.push("alloc_async", &[slot, bytes, stream]);
            }
            12 => self.push("host", &[slot, bytes.min(MIB)]),
            _ => {
                let bytes = bytes.min(MIB).next_multiple_of(4096);
                self.sizes[slot as usize] = bytes;
                self.push("register", &[slot, bytes]);
            }
        }
        self.memories.insert(slot);
    }

    fn free_one(&mut self) {
        let slot = self.memory();
        let stream = self.some_stream();
        match self.random.below(12) {
            0..=4 => self.push("free", &[slot, 0]),
            5 | 6 => self.push("free_async", &[slot, stream]),
            7 => self.push("host_free", &[slot]),
            8 => self.push("unregister", &[slot]),
            9 => {
                let at = self.random.below(self.sizes[slot as usize].max(1));
                self.push("free", &[slot, at]);
                return;
            }
            10 if !self.streams.is_empty() => {
                let slots = self.streams.clone();
                let stream = self.taken(&slots, SLOTS as u64);
                self.push("stream_end", &[FIRST_STREAM + stream]);
                self.streams.remove(&stream);
                return;
            }
            _ => self.push("free", &[slot, 0]),
        }
        // Freed slots are asked about later, and taken again when nothing else is vacant.
        if self.random.one_in(2) {
            self.memories.remove(&slot);
        }
    }

    fn synchronise(&mut self) {
        let stream = self.some_stream();
        match self.random.below(4) {
            // Beside another thread's capture, in any mode but a relaxed one, it is refused, and ends that capture (900, 901).
            0 if !self.free => self.push("ctx_sync", &[]),
            1 => self.push("stream_query", &[stream]),
            2 => self.push("stream_ctx", &[stream]),
            _ => self.push("stream_sync", &[stream]),
        }
    }

    /// A part of a slot's memory.
    fn part(&mut self, slot: u64) -> (u64, u64) {
        let size = self.sizes[slot as usize].max(8);
        if self.random.one_in(3) {
            return (0, size);
        }
        let at = self.random.below(size) / 8 * 8;
        (at, (self.random.below(size - at) + 1).min(size - at))
    }

    fn work(&mut self) {
        let (slot, stream, value) = (self.memory(), self.some_stream(), self.random.below(1 << 20));
        let (at, bytes) = self.part(slot);
        // Calls without a stream use the one that all threads share.
        let later = if self.free { 1 } else { self.random.below(2) };
        match self.random.below(16) {
            0 => self.push("set8", &[slot, at, bytes, value, stream, later]),
            1 => self.push("set32", &[slot, at, bytes, value, stream, later]),
            2 => self.push("set2d", &[slot, at, 64, value % 64 + 1, bytes / 64, value, stream, later]),
            3 => self.push("h2d", &[slot, at, bytes, value, stream, later]),
            4 | 5 => self.push("d2h", &[slot, at, bytes, stream, later]),
            6..=8 => {
                let (from, kind) = (self.memory(), if self.free { 2 + value % 2 } else { value % 6 });
                let (at2, bytes2) = self.part(from);
                self.push("copy", &[slot, at, from, at2, bytes.min(bytes2), stream, kind]);
            }
            9 => {
                let from = self.memory();
                let height = (self.sizes[slot as usize].min(self.sizes[from as usize]) / 256).min(64);
                self.push("copy2d", &[slot, 0, from, 0, value % 256 + 1, height, stream, later]);
            }
            10 => {
                let (from, kind) = (self.memory(), if self.free { 1 } else { value % 4 });
                let depth = (self.sizes[slot as usize].min(self.sizes[from as usize]) / 1024).min(16);
                self.push("copy3d", &[slot, 0, from, 0, value % 256 + 1, value % 4 + 1, depth, stream, kind]);
            }
            11 => self.push("fill", &[slot, at, bytes, value, stream]),
            12 => self.push("step", &[slot, at, bytes, value, stream]),
            13 => self.push("sum", &[slot, at, bytes, stream]),
            14 => self.push("spin", &[stream, self.ops.len() as u64 * 10_000]),
            _ => self.push("host_func", &[stream]),
        }
    }

    fn driver_memory(&mut self) {
        let device = self.random.below(2);
        match self.random.below(4) {
            _ if self.free => {}
            0 => {
                let bytes = self.random.pick(&[0, u64::MAX, 8 * MIB]);
                self.push("threshold", &[device, bytes]);
            }
            1 => self.push("trim", &[device]),
            _ => {
                // In use is what was freed and whose turn has not come in no run.
                self.push("ctx_sync", &[]);
                self.push("books", &[device]);
            }
        }
    }

    fn event(&mut self) {
        let (slots, stream) = (self.events.clone(), self.some_stream());
        let event = self.taken(&slots, SLOTS as u64);
        match self.random.below(6) {
            0 => {
                let slot = self.vacant(&slots, SLOTS as u64);
                self.push("event", &[slot]);
                self.events.insert(slot);
            }
            1 | 2 => self.push("record", &[event, stream]),
            3 => self.push("stream_wait", &[stream, event]),
            4 => self.push("event_sync", &[event]),
            _ => {
                self.push("event_query", &[event]);
                if self.random.one_in(4) {
                    self.push("event_end", &[event]);
                    self.events.remove(&event);
                }
            }
        }
    }

    fn vmm(&mut self) {
        let (slot, physicals) = (self.memory(), self.physicals.clone());
        let blocks = self.random.below(3) + 1;
        let at = self.random.below(3) * BLOCK;
        match self.random.below(12) {
            0 => {
                let slots = self.memories.clone();
                let slot = self.vacant(&slots, MEMORIES as u64);
                self.sizes[slot as usize] = 8 * MIB;
                self.push("reserve", &[slot, 8 * MIB]);
                self.memories.insert(slot);
            }
            1 | 2 => {
                let physical = self.vacant(&physicals, SLOTS as u64);
                let device = u64::from(self.random.one_in(5));
                self.push("create", &[physical, blocks * BLOCK, device]);
                self.physicals.insert(physical);
            }
            3 | 4 => {
                // Created and mapped, with access: what programs do.
                let physical = self.vacant(&physicals, SLOTS as u64);
                self.push("create", &[physical, blocks * BLOCK, 0]);
                self.push("map", &[slot, at, physical]);
                self.push("access", &[slot, at, blocks * BLOCK, 0, 3]);
                if self.random.one_in(2) {
                    self.push("drop", &[physical]);
                } else {
                    self.physicals.insert(physical);
                }
            }
            5 => {
                let physical = self.taken(&physicals, SLOTS as u64);
                self.push("map", &[slot, at, physical]);
            }
            6 => {
                let (device, flags) = (self.random.pick(&[0, 0, 0, 1]), self.random.pick(&[3, 3, 3, 1, 0]));
                self.push("access", &[slot, at, blocks * BLOCK, device, flags]);
            }
            7 | 8 => self.push("unmap", &[slot, at, blocks * BLOCK]),
            9 => {
                let physical = self.taken(&physicals, SLOTS as u64);
                self.push("drop", &[physical]);
                self.physicals.remove(&physical);
            }
            10 => {
                let physical = self.vacant(&physicals, SLOTS as u64);
                self.push("regain", &[physical, slot, at]);
                self.push("properties", &[physical]);
                self.physicals.insert(physical);
            }
            _ => self.push("unreserve", &[slot]),
        }
    }

    fn capture(&mut self) {
        let (graphs, executables) = (self.graphs.clone(), self.executables.clone());
        match (self.capturing, self.random.below(8)) {
            (None, 0..=2) => {
                let stream = self.some_stream();
                let mode = if self.free { 1 + self.random.below(2) } else { self.random.below(3) };
                self.push("begin", &[stream, mode]);
                self.capturing = Some(stream);
                // Something worth capturing.
                for _ in 0..3 {
                    let (slot, value) = (self.memory(), self.random.below(1000));
                    let (at, bytes) = self.part(slot);
                    let arrays = self.arrays.clone();
                    match self.random.below(4) {
                        3 if !arrays.is_empty() => {
                            let (array, way) = (self.taken(&arrays, MEMORIES as u64), self.random.below(2));
                            let verb = if way == 0 { "to_array" } else { "from_array" };
                            let kind = self.random.pick(&[1, 3]);
                            self.push(verb, &[array, value % 8 * 4, 0, slot, 0, 64, 1, stream, kind]);
                        }
                        0 => self.push("step", &[slot, at, bytes, value, stream]),
                        1 => self.push("set32", &[slot, at, bytes, value, stream, 1]),
                        _ => {
                            let from = self.memory();
                            let (at2, bytes2) = self.part(from);
                            self.push("copy", &[slot, at, from, at2, bytes.min(bytes2), stream, 2]);
                        }
                    }
                }
            }
            (Some(stream), 0..=4) => {
                let graph = self.vacant(&graphs, SLOTS as u64);
                self.push("end", &[stream, graph]);
                self.capturing = None;
                self.graphs.insert(graph);
                let executable = self.vacant(&executables, SLOTS as u64);
                self.push("instantiate", &[executable, graph]);
                self.executables.insert(executable);
            }
            (_, 5) => {
                let graph = self.taken(&graphs, SLOTS as u64);
                self.push("graph_end", &[graph]);
                self.graphs.remove(&graph);
            }
            (_, 6) if self.random.one_in(2) => {
                let executable = self.taken(&executables, SLOTS as u64);
                self.push("exec_end", &[executable]);
                self.executables.remove(&executable);
            }
            _ => {
                let (executable, stream) = (self.taken(&executables, SLOTS as u64), self.some_stream());
                self.push("launch", &[executable, stream]);
            }
        }
    }

    fn make_array(&mut self) {
        let memories = self.memories.clone();
        let slot = self.vacant(&memories, MEMORIES as u64);
        let (height, channels) =
            (self.random.pick(&[0, 1, 1, 16, 16, 64, 8000]), self.random.pick(&[4, 4, 4, 4, 4, 4, 3]));
        self.push("array", &[slot, height, channels]);
        self.memories.insert(slot);
        self.arrays.insert(slot);
    }

    /// Memory that is not small, mostly.
    fn large_memory(&mut self) -> u64 {
        let (one, other) = (self.memory(), self.memory());
        if self.sizes[one as usize] > self.sizes[other as usize] { one } else { other }
    }

    fn array(&mut self) {
        let arrays = self.arrays.clone();
        let slot = self.taken(&arrays, MEMORIES as u64);
        let (other, stream, kind) = (self.large_memory(), self.some_stream(), self.random.below(4));
        let kind = if self.free { kind | 1 } else { kind };
        // Mostly whole elements within the array.
        let (x, y) = (self.random.below(16) * 4 + u64::from(self.random.one_in(20)), self.random.below(4));
        let (width, height) =
            (self.random.below(32) * 4 + 4, 1 + self.random.below(4) * self.random.below(4));
        let at = self.random.below(4) * 256;
        match self.random.below(12) {
            0 | 1 => self.make_array(),
            _ if arrays.is_empty() => self.make_array(),
            2 => {
                self.push("array_end", &[slot]);
                self.arrays.remove(&slot);
            }
            3 => self.push("array_hash", &[slot]),
            4..=6 => self.push("to_array", &[slot, x, y, other, at, width, height, stream, kind]),
            7 | 8 => self.push("from_array", &[slot, x, y, other, at, width, height, stream, kind]),
            9 if !self.free => {
                let out = self.random.below(2);
                self.push("array_row", &[slot, x, other, at, width, out]);
            }
            _ => {
                let from = self.taken(&arrays, MEMORIES as u64);
                self.push("array_copy", &[slot, x, y * 4, from, width, height, stream, kind]);
            }
        }
    }

    fn graph_memory(&mut self) {
        let (graphs, executables) = (self.graphs.clone(), self.executables.clone());
        let (slot, value, device) = (self.memory(), self.random.below(256), self.random.below(2));
        let (at, bytes) = self.part(slot);
        match self.random.below(7) {
            6 => self.make_array(),
            0 if self.free => {}
            0 => self.push("graph_trim", &[device]),
            1 if self.free => {}
            1 => self.push("graph_books", &[device]),
            2 | 3 if self.capturing.is_some() => {
                let stream = self.capturing.unwrap_or(0);
                self.push("captured_memory", &[slot, at, bytes, value, stream]);
            }
            _ => {
                let graph = self.vacant(&graphs, SLOTS as u64);
                let executable = self.vacant(&executables, SLOTS as u64);
                let kind = self.random.below(3);
                self.push("graph_memory", &[executable, graph, slot, at, bytes, value, kind]);
                self.graphs.insert(graph);
                self.executables.insert(executable);
                let stream = self.some_stream();
                self.push("launch", &[executable, stream]);
            }
        }
    }

    fn context(&mut self) {
        let (contexts, device) = (self.contexts.clone(), self.random.below(2));
        let context = self.taken(&contexts, 4);
        match self.random.below(16) {
            0 | 1 => {
                let slot = self.vacant(&contexts, 4);
                self.push("ctx_create", &[slot, device]);
                self.contexts.insert(slot);
                self.push("set", &[slot]);
                self.push("module", &[slot]);
                self.stream();
                self.allocate();
            }
            2 => {
                self.push("ctx_destroy", &[context]);
                if context != 0 {
                    self.contexts.remove(&context);
                }
            }
            3 => {
                let slot = self.vacant(&contexts, 4);
                self.push("retain", &[slot, device]);
                self.contexts.insert(slot);
            }
            4 => self.push("release", &[device]),
            5 if self.random.one_in(3) => self.push("reset", &[device]),
            6 => self.push("state", &[device]),
            7..=9 => self.push("set", &[context]),
            10 => self.push("push", &[context]),
            11 => self.push("pop", &[]),
            12 => self.push("peer_on", &[context]),
            13 => self.push("peer_off", &[context]),
            14 => {
                let bytes = 1024 * (1 + self.random.below(4));
                self.push("stack", &[bytes]);
            }
            _ => {
                let module = self.random.below(4);
                let verb = if self.random.one_in(2) { "module" } else { "module_end" };
                self.push(verb, &[module]);
            }
        }
    }

    fn question(&mut self) {
        let slot = self.memory();
        let size = self.sizes[slot as usize];
        // Inside; what lies behind an allocation is up to the allocator.
        let at = match self.random.below(6) {
            0 | 1 => 0,
            2 | 3 => size.saturating_sub(1),
            _ => self.random.below(size.max(1)),
        };
        match self.random.below(11) {
            0 if !self.free => self.push("info", &[]),
            1 => {
                let device = self.random.below(2);
                self.push("total", &[device]);
            }
            2..=4 => {
                let number = self.random.below(21);
                self.push("attribute", &[slot, at, number]);
            }
            5 | 6 => {
                let mut mask = self.random.next() & 0x3f_fffe;
                if !self.random.one_in(8) {
                    // P2P tokens in a list are refused.
                    mask &= !(1 << 5);
                }
                self.push("attributes", &[slot, at, mask]);
            }
            7 => self.push("range", &[slot, at]),
            8 => {
                let device = self.random.below(2);
                self.push("access_of", &[slot, at, device]);
            }
            9 => self.push("retain_of", &[slot, at]),
            _ if self.random.one_in(6) => self.push("memops", &[slot, at]),
            _ => self.push("range", &[slot, at]),
        }
    }
}
