//! Random scripts. A step names slots that are probably taken, or free, as it needs; where a guess was wrong the step is
//! skipped in both runs, or the driver refuses it, which must then be the same.

mod captures;
mod contexts;
mod memory;
mod random;
mod vmm;
mod work;

use std::collections::BTreeSet;

pub(crate) use self::random::Random;
use crate::script::{Op, Script};
use crate::world::MEMORIES;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;

/// What a script can be about. With everything at once, most steps would fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Theme {
    Plain,
    Vmm,
    Captures,
    Contexts,
    Arrays,
    Shared,
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
        Theme::Shared,
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
            (Theme::Shared, 7..=13) if !self.free => self.lend(),
            (Theme::Contexts, 7..=11) if !self.free => self.context(),
            (Theme::Everything, 7..=9) => self.vmm(),
            (Theme::Everything, 10 | 11) => self.capture(),
            (Theme::Everything, 12) if !self.free => self.context(),
            (Theme::Everything, 13) => self.array(),
            (Theme::Everything, 16) if !self.free => self.lend(),
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
}
