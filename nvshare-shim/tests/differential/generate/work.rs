//! Steps about work: streams, events, what is submitted and waited for.

use super::Generator;
use crate::world::{FIRST_STREAM, SLOTS};

impl Generator {
    /// One of the default streams, or one that was made.
    pub(super) fn some_stream(&mut self) -> u64 {
        if self.streams.is_empty() || self.random.one_in(4) {
            // Those of all threads, or of a thread: of a script that runs freely only the latter.
            return if self.free { 2 } else { self.random.below(3) };
        }
        let slots = self.streams.clone();
        FIRST_STREAM + self.taken(&slots, SLOTS as u64)
    }

    pub(super) fn stream(&mut self) {
        let slots = self.streams.clone();
        let (slot, flags) =
            (self.vacant(&slots, SLOTS as u64), if self.free { 1 } else { self.random.below(2) });
        self.push("stream", &[FIRST_STREAM + slot, flags]);
        self.streams.insert(slot);
    }

    pub(super) fn synchronise(&mut self) {
        let stream = self.some_stream();
        match self.random.below(4) {
            // Beside another thread's capture, in any mode but a relaxed one, it is refused, and ends that capture (900, 901).
            0 if !self.free => self.push("ctx_sync", &[]),
            1 => self.push("stream_query", &[stream]),
            2 => self.push("stream_ctx", &[stream]),
            _ => self.push("stream_sync", &[stream]),
        }
    }

    pub(super) fn work(&mut self) {
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

    pub(super) fn event(&mut self) {
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
}
