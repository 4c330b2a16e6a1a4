//! What used a script's memory last, and whether a step may use it after that: never two at once, never what it could not know.

use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use crate::script::Op;
use crate::world::{FIRST_STREAM, Kind, MEMORIES, Use, World, cu, hash, relaxed};

const UNSAFE_IN_A_CAPTURE: u32 = 900;

/// What a range is used by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// A kernel, of a device.
    Kernel,
    /// A memset.
    Set,
    /// A copy.
    Copy,
    /// A copy, as an array.
    Array,
}

impl World {
    /// Whether a stream is being captured, asked without a trace.
    pub(crate) fn is_captured(&self, stream: CUstream) -> bool {
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        relaxed(|| cu!(cuStreamIsCapturing(stream, &raw mut status)));
        status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE
    }

    /// Both ends of a copy.
    pub(crate) fn ready_both(&mut self, op: &Op, bytes: u64, stream: u64) -> Option<(CUstream, u64, u64)> {
        let (there, at, here, from_at) = (op.args[0], op.args[1], op.args[2], op.args[3]);
        if there as usize % MEMORIES == here as usize % MEMORIES {
            return None;
        }
        let (handle, to) = self.ready(there, at, bytes, stream, By::Copy)?;
        let (_, from) = self.ready(here, from_at, bytes, stream, By::Copy)?;
        Some((handle, to, from))
    }

    /// The stream and the address, if work in the stream may use the range: it is there, its contents are known, the device
    /// may reach it, and what used it before is over or comes before.
    pub(crate) fn ready(
        &mut self,
        slot: u64,
        at: u64,
        bytes: u64,
        stream: u64,
        by: By,
    ) -> Option<(CUstream, u64)> {
        let slot = slot as usize % MEMORIES;
        let (handle, context) = self.stream(stream)?;
        let (device, peers) = {
            let context = self.contexts[context].as_ref()?;
            (context.device, context.peers.clone())
        };
        let memory = self.memories[slot].as_ref()?;
        let inside = bytes > 0 && at.checked_add(bytes).is_some_and(|end| end <= memory.bytes);
        let as_it_is = (memory.kind == Kind::Array) == (by == By::Array);
        if memory.gone || !memory.known || !inside || !as_it_is {
            return None;
        }
        match memory.kind {
            Kind::Reserved => {
                let mut next = at;
                while next < at + bytes {
                    let (start, mapping) = memory.mapped.range(..=next).next_back()?;
                    let usable = mapping.access[device] == 3 && self.written.contains(&mapping.physical);
                    if next >= start + mapping.bytes || !usable {
                        return None;
                    }
                    next = start + mapping.bytes;
                }
            }
            Kind::Plain | Kind::Async
                if memory.device != device
                    && by == By::Kernel
                    && !(memory.kind == Kind::Plain && peers.contains(&memory.context)) =>
            {
                return None;
            }
            // Known to differ: plain memory of another card without peer access, which memsets are refused bare (1), is mapped
            // for all cards that can reach it by the library.
            Kind::Plain if memory.device != device && by == By::Set && !peers.contains(&memory.context) => {
                return None;
            }
            // A copy that names it as memory of the host would be another call.
            _ => {}
        }
        let start = if by == By::Array { memory.start } else { memory.start + at };
        self.before(slot, handle);
        Some((handle, start))
    }

    /// Waits for what used a slot's memory in another stream.
    pub(crate) fn before(&mut self, slot: usize, stream: CUstream) {
        let Some(memory) = self.memories[slot].as_ref() else { return };
        if memory.kind == Kind::Reserved {
            let others = (0..MEMORIES).filter(|other| *other != slot).collect::<Vec<_>>();
            for other in others {
                let reserved = self.memories[other].as_mut().filter(|memory| memory.kind == Kind::Reserved);
                let last = reserved.and_then(|memory| memory.last.take());
                self.settle(last);
            }
        }
        let same = match self.memories[slot].as_ref().and_then(|memory| memory.last) {
            Some(Use::Stream(last, _)) => last == stream,
            Some(Use::Default(last, context, thread, _)) => {
                last == stream
                    && self.current() == Some(context)
                    && (stream as u64 != 2 || thread == self.thread)
            }
            _ => false,
        };
        if !same {
            let last = self.memories[slot].as_mut().and_then(|memory| memory.last.take());
            self.settle(last);
        }
    }

    /// Work that uses the slot's memory was submitted with this result.
    pub(crate) fn done(&mut self, slot: u64, stream: u64, code: u32) -> u32 {
        if code == 0
            && let Some((handle, context)) = self.stream(stream)
        {
            self.used(slot as usize % MEMORIES, handle, context);
        }
        // Known to differ: a copy between devices that waits, refused for somebody's capture (900), is refused by the
        // driver before it is made; the library has submitted it by then. Nothing is compared of that memory any more.
        if code == UNSAFE_IN_A_CAPTURE
            && let Some(memory) = &mut self.memories[slot as usize % MEMORIES]
        {
            memory.known = false;
        }
        code
    }

    /// Work in the stream uses the slot's memory, or will when what is being captured is launched.
    pub(crate) fn used(&mut self, slot: usize, stream: CUstream, context: usize) {
        if self.is_captured(stream) {
            for capture in self.captured.values_mut() {
                capture.uses.insert(slot);
            }
            return;
        }
        let mut last = Use::Stream(stream, context);
        if (stream as u64) < FIRST_STREAM
            && let Some(event) = self.event_in(stream, context)
        {
            last = Use::Default(stream, context, self.thread, event);
        }
        if let Some(memory) = &mut self.memories[slot] {
            memory.last = Some(last);
        }
    }

    /// The contents of a slot's memory, wherever it is; a hash of them, or why not.
    pub(crate) fn contents(&mut self, slot: usize) -> String {
        let Some(memory) = self.memories[slot].as_mut() else { return "nothing".to_owned() };
        let last = memory.last.take();
        self.settle(last);
        let Some(memory) = &self.memories[slot] else { return "nothing".to_owned() };
        let context = match memory.kind {
            Kind::Reserved => self.contexts.iter().flatten().find(|context| context.device == 0),
            _ => self.contexts[memory.context].as_ref(),
        };
        let Some(context) = context.filter(|_| !memory.gone && memory.known) else {
            return "nobody's".to_owned();
        };
        if memory.kind == Kind::Array {
            return self.array_contents(slot);
        }
        let mut pieces = vec![(0, memory.bytes)];
        if memory.kind == Kind::Reserved {
            let readable = memory.mapped.iter().filter(|(_, mapping)| {
                mapping.access[context.device] == 3 && self.written.contains(&mapping.physical)
            });
            pieces = readable.map(|(at, mapping)| (*at, mapping.bytes)).collect();
        }
        let mut found = 0_u64;
        for (at, bytes) in pieces {
            let mut to = vec![0_u8; bytes as usize];
            let code = relaxed(|| {
                cu!(cuCtxPushCurrent_v2(context.handle));
                let (to, from) = (to.as_mut_ptr() as u64, memory.start + at);
                let copied = cu!(cuMemcpyAsync(to, from, bytes as usize, context.filler));
                let done = cu!(cuStreamSynchronize(context.filler));
                cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
                copied.max(done)
            });
            if code != 0 {
                return format!("error {code}");
            }
            found = hash(&to) ^ found.rotate_left(1);
        }
        format!("{found:x}")
    }

    /// The context that a copy between devices names for a slot's memory: the owner's, or one of the device.
    pub(crate) fn owner(&self, slot: u64) -> Option<cudarc::driver::sys::CUcontext> {
        let memory = self.memories[slot as usize % MEMORIES].as_ref()?;
        Some(self.contexts[memory.context].as_ref()?.handle)
    }
}
