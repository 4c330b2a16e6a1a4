//! Captures and graphs of a script. A graph is launched only while all memory that it uses is there.

use std::collections::BTreeSet;

use cudarc::driver::sys::CUstreamCaptureMode as Mode;

use crate::script::Op;
use crate::world::{Capture, Executable, Graph, Kind, SLOTS, Stream, World, cu};

impl World {
    pub(crate) fn run_graphs(&mut self, op: &Op) -> Option<String> {
        let [first, second] = [0, 1].map(|index| op.args.get(index).copied().unwrap_or(0));
        let slot = first as usize % SLOTS;
        let code = match op.verb() {
            "begin" => {
                let (stream, context) = self.stream(first)?;
                let mode = match second {
                    0 => Mode::CU_STREAM_CAPTURE_MODE_GLOBAL,
                    1 => Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                    _ => Mode::CU_STREAM_CAPTURE_MODE_RELAXED,
                };
                self.outlive(Stream { handle: stream, context });
                let code = cu!(cuStreamBeginCapture_v2(stream, mode));
                if code == 0 {
                    let capture = Capture { stream: first, thread: op.thread, uses: BTreeSet::new() };
                    self.captured.insert(self.key(stream, context), capture);
                }
                code
            }
            "end" => {
                let (stream, context) = self.stream(first)?;
                let slot = second as usize % SLOTS;
                if self.graphs[slot].is_some() {
                    return None;
                }
                let mut graph = std::ptr::null_mut();
                let code = cu!(cuStreamEndCapture(stream, &raw mut graph));
                let uses = if self.is_captured(stream) {
                    None
                } else {
                    self.captured.remove(&self.key(stream, context))
                };
                if code == 0 {
                    self.graphs[slot] = Some(Graph {
                        handle: graph,
                        uses: uses.map(|capture| capture.uses).unwrap_or_default(),
                        context,
                    });
                }
                code
            }
            "graph_end" => {
                let graph = self.graphs[slot].take()?;
                cu!(cuGraphDestroy(graph.handle))
            }
            "instantiate" => {
                let graph = self.graphs[second as usize % SLOTS].as_ref()?;
                if self.executables[slot].is_some() {
                    return None;
                }
                let (uses, context) = (graph.uses.clone(), graph.context);
                let mut handle = std::ptr::null_mut();
                let code = cu!(cuGraphInstantiateWithFlags(&raw mut handle, graph.handle, 0));
                if code == 0 {
                    self.executables[slot] = Some(Executable { handle, uses, context });
                }
                code
            }
            "exec_end" => {
                let executable = self.executables[slot].take()?;
                cu!(cuGraphExecDestroy(executable.handle))
            }
            "launch" => {
                let (stream, context) = self.stream(second)?;
                let executable = self.executables[slot].as_ref()?;
                let (handle, uses) = (executable.handle, executable.uses.clone());
                // What a graph would do with memory that is gone, or mapped otherwise by now, is an error for good.
                let there = |slot: &usize| {
                    let memory = self.memories[*slot].as_ref();
                    memory.is_some_and(|memory| !memory.gone && memory.kind != Kind::Reserved)
                };
                let captured = self.is_captured(stream);
                if executable.context != context || !uses.iter().all(there) || captured {
                    return None;
                }
                for slot in &uses {
                    self.before(*slot, stream);
                }
                let code = cu!(cuGraphLaunch(handle, stream));
                if code == 0 {
                    for slot in uses {
                        self.used(slot, stream, context);
                    }
                }
                code
            }
            _ => return None,
        };
        Some(code.to_string())
    }
}
