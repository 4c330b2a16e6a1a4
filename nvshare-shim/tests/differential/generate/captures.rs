//! Steps about captures, and graphs with memory.

use super::Generator;
use crate::world::{MEMORIES, SLOTS};

impl Generator {
    pub(super) fn capture(&mut self) {
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

    pub(super) fn graph_memory(&mut self) {
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
}
