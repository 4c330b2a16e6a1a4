//! What a script works with: contexts, streams, memory and so on in numbered slots; what is known of each; and names for
//! addresses and handles, as those themselves differ from run to run.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;

use cudarc::driver::sys::{self, CUcontext, CUevent, CUgraph, CUgraphExec, CUmemoryPool, CUmodule, CUstream};

use crate::script::Op;

/// Slots of each kind.
pub(crate) const SLOTS: usize = 8;
/// Slots of memory.
pub(crate) const MEMORIES: usize = 12;
/// The first stream that is a slot.
pub(crate) const FIRST_STREAM: u64 = 3;

/// Calls the driver: the result's number.
macro_rules! cu {
    ($name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: a test program's own call: its arguments are valid, or the driver says that they are not.
        (unsafe { ::cudarc::driver::sys::$name($($argument),*) }) as u32
    };
}
pub(crate) use cu;

pub(crate) struct Context {
    pub(crate) handle: CUcontext,
    pub(crate) device: usize,
    pub(crate) primary: bool,
    /// A stream that fills what is allocated, so that its contents are known; it takes part in nothing else.
    pub(crate) filler: CUstream,
    pub(crate) peers: BTreeSet<usize>,
}

#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) handle: CUstream,
    pub(crate) context: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Plain,
    Async,
    Managed,
    Host,
    Registered,
    Reserved,
    /// Has a handle in place of an address.
    Array,
}

/// A handle of physical memory, as a mapping knows it.
#[derive(Clone)]
pub(crate) struct Mapping {
    pub(crate) bytes: u64,
    pub(crate) physical: u64,
    pub(crate) access: [u64; 2],
}

/// Who used something last: whoever uses it next waits for that first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Stream(CUstream, usize),
    /// A default stream, the slot of its context, the thread, and an event recorded there just behind: during a capture
    /// the legacy stream cannot be waited for, and a thread's own stream is waited for by that thread alone.
    Default(CUstream, usize, usize, CUevent),
    /// The stream is gone, this event was recorded in it.
    Event(CUevent),
}

pub(crate) struct Memory {
    pub(crate) kind: Kind,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) context: usize,
    pub(crate) device: usize,
    /// Every byte was written once.
    pub(crate) known: bool,
    /// Freed: only questions are asked about it.
    pub(crate) gone: bool,
    /// How much had been made when it was freed.
    pub(crate) freed_at: u64,
    pub(crate) last: Option<Use>,
    pub(crate) mapped: BTreeMap<u64, Mapping>,
    /// The program's own memory, for what is registered.
    pub(crate) own: Vec<u8>,
}

pub(crate) struct Physical {
    pub(crate) handle: u64,
    pub(crate) bytes: u64,
    /// Names the memory: another slot may hold a reference to the same.
    pub(crate) id: u64,
}

pub(crate) struct Graph {
    pub(crate) handle: CUgraph,
    /// The memory it uses.
    pub(crate) uses: BTreeSet<usize>,
    pub(crate) context: usize,
}

/// Names a stream: its handle, and of a thread's own the thread and the slot of the context, which share the handle 2.
pub(crate) type Key = (u64, usize, usize);

/// A capture under way.
pub(crate) struct Capture {
    /// The stream's number.
    pub(crate) stream: u64,
    /// Who began it, and must end it.
    pub(crate) thread: usize,
    /// The memory it has used so far.
    pub(crate) uses: BTreeSet<usize>,
}

pub(crate) struct Executable {
    pub(crate) handle: CUgraphExec,
    pub(crate) uses: BTreeSet<usize>,
    pub(crate) context: usize,
}

/// See the module.
pub(crate) struct World {
    pub(crate) contexts: [Option<Context>; SLOTS],
    pub(crate) streams: [Option<Stream>; SLOTS],
    pub(crate) events: [Option<CUevent>; SLOTS],
    pub(crate) modules: [Option<(CUmodule, usize)>; SLOTS],
    pub(crate) memories: [Option<Memory>; MEMORIES],
    pub(crate) physicals: [Option<Physical>; SLOTS],
    /// Which physical memory has known contents, and the most there ever was.
    pub(crate) written: BTreeSet<u64>,
    pub(crate) graphs: [Option<Graph>; SLOTS],
    pub(crate) executables: [Option<Executable>; SLOTS],
    /// A pool of the script's own on each device.
    pub(crate) pools: [CUmemoryPool; 2],
    /// What is being captured, by [`World::key`].
    pub(crate) captured: BTreeMap<Key, Capture>,
    /// Whose step is done now.
    pub(crate) thread: usize,
    /// Waiting for what used memory failed so: what is read of it from then on means nothing.
    pub(crate) unsettled: Cell<u32>,
    /// All ranges there ever were: start, size, name.
    pub(crate) ranges: Vec<(u64, u64, String)>,
    /// A word that kernels write results to and host functions count in.
    pub(crate) result: *mut u64,
    pub(crate) made: u64,
    /// Other threads of the script make memory, too, and nobody knows when.
    pub(crate) beside_others: bool,
    /// What the second process has open.
    pub(crate) lent: BTreeSet<usize>,
    /// Where swaps are ordered, under the library.
    pub(crate) swaps: Option<i32>,
}

// SAFETY: one thread after the other uses a world, and the pointers in it are the driver's or to pinned memory.
unsafe impl Send for World {}

impl World {
    pub(crate) fn new(swaps: Option<i32>) -> World {
        World {
            contexts: std::array::from_fn(|_| None),
            streams: [None; SLOTS],
            events: [None; SLOTS],
            modules: [None; SLOTS],
            memories: std::array::from_fn(|_| None),
            physicals: std::array::from_fn(|_| None),
            written: BTreeSet::new(),
            graphs: std::array::from_fn(|_| None),
            executables: std::array::from_fn(|_| None),
            pools: [std::ptr::null_mut(); 2],
            captured: BTreeMap::new(),
            thread: 0,
            unsettled: Cell::new(0),
            ranges: Vec::new(),
            result: std::ptr::null_mut(),
            made: 0,
            beside_others: false,
            lent: BTreeSet::new(),
            swaps,
        }
    }

    /// Does one step; the value is what is to be compared.
    pub(crate) fn run(&mut self, op: &Op) -> String {
        self.thread = op.thread;
        let mut said = self
            .run_lent(op)
            .or_else(|| self.run_contexts(op))
            .or_else(|| self.run_streams(op))
            .or_else(|| self.run_memory(op))
            .or_else(|| self.run_vmm(op))
            .or_else(|| self.run_work(op))
            .or_else(|| self.run_arrays(op))
            .or_else(|| self.run_graphs(op))
            .or_else(|| self.run_graph_memory(op))
            .or_else(|| self.run_questions(op))
            .unwrap_or_else(|| "skipped".to_owned());
        let made = self.made;
        for memory in self.memories.iter_mut().flatten().filter(|memory| memory.gone && memory.freed_at == 0)
        {
            memory.freed_at = made;
        }
        let unsettled = self.unsettled.take();
        if unsettled != 0 {
            said += &format!(" (what used the memory could not be waited for: {unsettled})");
        }
        said
    }

    pub(crate) fn key(&self, stream: CUstream, context: usize) -> Key {
        if stream as u64 == 2 { (2, self.thread, context) } else { (stream as u64, 0, 0) }
    }

    /// The slot of the calling thread's context.
    pub(crate) fn current(&self) -> Option<usize> {
        let mut current = std::ptr::null_mut();
        cu!(cuCtxGetCurrent(&raw mut current));
        let is =
            |context: &Option<Context>| context.as_ref().is_some_and(|context| context.handle == current);
        if current.is_null() { None } else { self.contexts.iter().position(is) }
    }

    /// The stream that a number names, and the slot of its context; `None` for a slot with nothing in it.
    pub(crate) fn stream(&self, number: u64) -> Option<(CUstream, usize)> {
        if number < FIRST_STREAM {
            return Some((number as CUstream, self.current()?));
        }
        let stream = self.streams[(number - FIRST_STREAM) as usize % SLOTS]?;
        Some((stream.handle, stream.context))
    }

    /// A name for an address: the allocation and how far into it.
    pub(crate) fn name(&self, address: u64) -> String {
        if address == 0 {
            return "null".to_owned();
        }
        let found =
            self.ranges.iter().rev().find(|(start, bytes, _)| (*start..*start + *bytes).contains(&address));
        found.map_or_else(|| "somewhere".to_owned(), |(start, _, name)| format!("{name}+{}", address - start))
    }

    /// Remembers a range under a name of its own.
    pub(crate) fn named(&mut self, start: u64, bytes: u64, what: &str) {
        self.made += 1;
        self.ranges.push((start, bytes, format!("{what}{}", self.made)));
    }

    /// A name for a context.
    pub(crate) fn context_name(&self, handle: CUcontext) -> String {
        if handle.is_null() {
            return "none".to_owned();
        }
        let is = |context: &Option<Context>| context.as_ref().is_some_and(|context| context.handle == handle);
        self.contexts.iter().position(is).map_or_else(|| "another".to_owned(), |slot| format!("c{slot}"))
    }

    /// Waits, without a trace, until nobody uses what was used last so.
    pub(crate) fn settle(&self, last: Option<Use>) {
        let code = relaxed(|| match last {
            None => 0,
            Some(Use::Event(event) | Use::Default(_, _, _, event)) => cu!(cuEventSynchronize(event)),
            Some(Use::Stream(stream, context)) => {
                // The default streams are those of the context that was current.
                self.contexts[context].as_ref().map_or(0, |context| {
                    cu!(cuCtxPushCurrent_v2(context.handle));
                    let code = cu!(cuStreamSynchronize(stream));
                    cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
                    code
                })
            }
        });
        self.unsettled.set(self.unsettled.get().max(code));
    }

    /// Waits for all that uses memory.
    pub(crate) fn settle_all(&mut self) {
        for slot in 0..MEMORIES {
            let last = self.memories[slot].as_mut().and_then(|memory| memory.last.take());
            self.settle(last);
        }
    }

    /// Fills new memory, so that its contents are known.
    pub(crate) fn fill(&self, context: usize, start: u64, bytes: u64, value: u8) -> bool {
        let Some(context) = &self.contexts[context] else { return false };
        relaxed(|| {
            cu!(cuCtxPushCurrent_v2(context.handle));
            let set = cu!(cuMemsetD8Async(start, value, bytes as usize, context.filler));
            let done = cu!(cuStreamSynchronize(context.filler));
            cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
            set == 0 && done == 0
        })
    }
}

/// Acts with the calling thread in relaxed mode, so that captures of anybody notice nothing.
pub(crate) fn relaxed<T>(act: impl FnOnce() -> T) -> T {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    cu!(cuThreadExchangeStreamCaptureMode(&raw mut mode));
    let result = act();
    cu!(cuThreadExchangeStreamCaptureMode(&raw mut mode));
    result
}

/// A hash of bytes, for transcripts.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Writes into the calling program's view of a `c_void` pointer.
pub(crate) fn pointer(address: u64) -> *mut c_void {
    address as *mut c_void
}

impl World {
    /// Whether the address of memory that was freed may be somebody else's by now, as the allocator likes.
    pub(crate) fn is_reused(&self, memory: &Memory) -> bool {
        memory.gone && (self.beside_others || memory.freed_at != self.made)
    }

    /// Gives everything back, and says what came of it.
    pub(crate) fn clear(&mut self) -> String {
        let mut codes = Vec::new();
        for executable in self.executables.iter_mut().filter_map(Option::take) {
            codes.push(cu!(cuGraphExecDestroy(executable.handle)));
        }
        for graph in self.graphs.iter_mut().filter_map(Option::take) {
            codes.push(cu!(cuGraphDestroy(graph.handle)));
        }
        for memory in self.memories.iter_mut().filter_map(Option::take) {
            if memory.gone {
                continue;
            }
            let context =
                self.contexts.get(memory.context).and_then(Option::as_ref).map(|context| context.handle);
            if let Some(context) = context {
                cu!(cuCtxPushCurrent_v2(context));
            }
            let code = match memory.kind {
                Kind::Plain | Kind::Async | Kind::Managed => cu!(cuMemFree_v2(memory.start)),
                Kind::Array => cu!(cuArrayDestroy(memory.start as sys::CUarray)),
                Kind::Host => cu!(cuMemFreeHost(pointer(memory.start))),
                Kind::Registered => cu!(cuMemHostUnregister(pointer(memory.start))),
                Kind::Reserved => {
                    for (at, mapping) in &memory.mapped {
                        codes.push(cu!(cuMemUnmap(memory.start + at, mapping.bytes as usize)));
                    }
                    cu!(cuMemAddressFree(memory.start, memory.bytes as usize))
                }
            };
            codes.push(code);
            if context.is_some() {
                cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
            }
        }
        for physical in self.physicals.iter_mut().filter_map(Option::take) {
            codes.push(cu!(cuMemRelease(physical.handle)));
        }
        for event in self.events.iter_mut().filter_map(Option::take) {
            codes.push(cu!(cuEventDestroy_v2(event)));
        }
        for stream in self.streams.iter_mut().filter_map(Option::take) {
            codes.push(cu!(cuStreamDestroy_v2(stream.handle)));
        }
        for context in self.contexts.iter_mut().filter_map(Option::take).filter(|context| !context.primary) {
            codes.push(cu!(cuCtxDestroy_v2(context.handle)));
        }
        format!("    cleared {codes:?}\n")
    }
}
