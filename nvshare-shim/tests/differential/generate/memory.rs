//! Steps about memory: allocated, written, freed, of pools, arrays.

use super::{Generator, MIB};
use crate::world::{FIRST_STREAM, MEMORIES, SLOTS};

impl Generator {
    pub(super) fn write(&mut self, length: u64) {
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

    pub(super) fn allocate(&mut self) {
        let slots = self.memories.clone();
        let slot = self.vacant(&slots, MEMORIES as u64);
        let small = 256 + self.random.below(64) * 256;
        let large = MIB + self.random.below(16) * (MIB / 4);
        let bytes = if self.random.one_in(2) { small } else { large };
        self.sizes[slot as usize] = bytes;
        match self.random.below(15) {
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
            12 => {
                let stream = self.some_stream();
                self.push("alloc_pool", &[slot, bytes, stream]);
            }
            13 => self.push("host", &[slot, bytes.min(MIB)]),
            _ => {
                let bytes = bytes.min(MIB).next_multiple_of(4096);
                self.sizes[slot as usize] = bytes;
                self.push("register", &[slot, bytes]);
            }
        }
        self.memories.insert(slot);
    }

    pub(super) fn free_one(&mut self) {
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

    /// A part of a slot's memory.
    pub(super) fn part(&mut self, slot: u64) -> (u64, u64) {
        let size = self.sizes[slot as usize].max(8);
        if self.random.one_in(3) {
            return (0, size);
        }
        let at = self.random.below(size) / 8 * 8;
        (at, (self.random.below(size - at) + 1).min(size - at))
    }

    /// Memory and the second process.
    pub(super) fn lend(&mut self) {
        let slot = self.memory();
        let (at, bytes) = self.part(slot);
        match self.random.below(8) {
            0..=2 => {
                let at = if self.random.one_in(4) { at } else { 0 };
                self.push("lend", &[slot, at]);
            }
            3 | 4 => {
                let value = self.random.below(256);
                self.push("lent_set", &[slot, at, bytes, value]);
            }
            5 => self.push("lent_hash", &[slot, at, bytes]),
            6 => self.push("lent_range", &[slot, at]),
            _ => self.push("unlend", &[slot]),
        }
    }

    pub(super) fn driver_memory(&mut self) {
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

    pub(super) fn make_array(&mut self) {
        let memories = self.memories.clone();
        let slot = self.vacant(&memories, MEMORIES as u64);
        let (height, channels) =
            (self.random.pick(&[0, 1, 16, 64, 8000, 8000, 16384]), self.random.pick(&[4, 4, 4, 4, 4, 4, 3]));
        self.push("array", &[slot, height, channels]);
        self.memories.insert(slot);
        self.arrays.insert(slot);
    }

    /// Memory that is not small, mostly.
    pub(super) fn large_memory(&mut self) -> u64 {
        let (one, other) = (self.memory(), self.memory());
        if self.sizes[one as usize] > self.sizes[other as usize] { one } else { other }
    }

    pub(super) fn array(&mut self) {
        let arrays = self.arrays.clone();
        let slot = self.taken(&arrays, MEMORIES as u64);
        let (other, stream, kind) = (self.large_memory(), self.some_stream(), self.random.below(4));
        let kind = if self.free { kind | 1 } else { kind };
        // Mostly whole elements within the array.
        let far = if self.random.one_in(4) { self.random.below(8000) } else { 0 };
        let (x, y) =
            (self.random.below(16) * 4 + u64::from(self.random.one_in(20)), self.random.below(4) + far);
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
}
