//! Contexts, modules, streams and events of a script.

use std::collections::BTreeSet;

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
use cudarc::driver::sys::CUlimit::CU_LIMIT_STACK_SIZE;

use crate::script::Op;
use crate::world::{Context, FIRST_STREAM, SLOTS, Stream, Use, World, cu, relaxed};

pub(crate) const KERNELS: &str = concat!(include_str!("../../../xtask/workload/src/kernels.ptx"), "\0");

const NOT_READY: u32 = 600;

impl World {
    pub(crate) fn run_contexts(&mut self, op: &Op) -> Option<String> {
        let [first, second] = [0, 1].map(|index| op.args.get(index).copied().unwrap_or(0));
        let slot = first as usize % SLOTS;
        let code = match op.verb() {
            "ctx_create" => {
                if self.contexts[slot].is_some() {
                    return None;
                }
                let mut handle = std::ptr::null_mut();
                let code = cu!(cuCtxCreate_v2(&raw mut handle, 0, second as i32));
                if code == 0 {
                    self.begin_context(slot, handle, second as usize, false);
                    cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
                }
                code
            }
            "ctx_destroy" => {
                let context = self.contexts[slot].as_ref()?;
                let (handle, primary) = (context.handle, context.primary);
                // A stream of it may use another context's memory.
                self.settle_all();
                let code = cu!(cuCtxDestroy_v2(handle));
                if code == 0 && !primary {
                    self.end_context(slot);
                }
                code
            }
            "retain" => {
                if self.contexts[slot].as_ref().is_some_and(|context| !context.primary) {
                    return None;
                }
                let mut handle = std::ptr::null_mut();
                let code = cu!(cuDevicePrimaryCtxRetain(&raw mut handle, second as i32));
                if code == 0 && self.contexts.iter().flatten().all(|context| context.handle != handle) {
                    if self.contexts[slot].is_some() {
                        // Another device's is there.
                        cu!(cuDevicePrimaryCtxRelease_v2(second as i32));
                        return None;
                    }
                    cu!(cuCtxPushCurrent_v2(handle));
                    self.begin_context(slot, handle, second as usize, true);
                    cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
                }
                code
            }
            "release" => {
                let code = self.about_to_end(first, |device| cu!(cuDevicePrimaryCtxRelease_v2(device)));
                return Some(format!("{code} {}", self.primary_state(first)));
            }
            "reset" => self.about_to_end(first, |device| cu!(cuDevicePrimaryCtxReset_v2(device))),
            "state" => return Some(self.primary_state(first)),
            "set" => {
                let handle = self.contexts[slot].as_ref()?.handle;
                cu!(cuCtxSetCurrent(handle))
            }
            "unset" => cu!(cuCtxSetCurrent(std::ptr::null_mut())),
            "push" => {
                let handle = self.contexts[slot].as_ref()?.handle;
                cu!(cuCtxPushCurrent_v2(handle))
            }
            "pop" => {
                let mut popped = std::ptr::null_mut();
                let code = cu!(cuCtxPopCurrent_v2(&raw mut popped));
                return Some(format!("{code} {}", self.context_name(popped)));
            }
            "ctx_sync" => cu!(cuCtxSynchronize()),
            "peer_on" | "peer_off" => {
                let current = self.current()?;
                let handle = self.contexts[slot].as_ref()?.handle;
                let on = op.verb() == "peer_on";
                let code = if on {
                    cu!(cuCtxEnablePeerAccess(handle, 0))
                } else {
                    cu!(cuCtxDisablePeerAccess(handle))
                };
                if let (0, Some(context)) = (code, &mut self.contexts[current]) {
                    if on {
                        context.peers.insert(slot)
                    } else {
                        context.peers.remove(&slot)
                    };
                }
                code
            }
            "stack" => cu!(cuCtxSetLimit(CU_LIMIT_STACK_SIZE, first as usize)),
            "module" => {
                let current = self.current()?;
                if self.modules[slot].is_some() {
                    return None;
                }
                let mut module = std::ptr::null_mut();
                let code = cu!(cuModuleLoadData(&raw mut module, KERNELS.as_ptr().cast()));
                if code == 0 {
                    self.modules[slot] = Some((module, current));
                }
                code
            }
            "module_end" => {
                let (module, _) = self.modules[slot].take()?;
                cu!(cuModuleUnload(module))
            }
            _ => return None,
        };
        Some(code.to_string())
    }

    fn begin_context(
        &mut self,
        slot: usize,
        handle: cudarc::driver::sys::CUcontext,
        device: usize,
        primary: bool,
    ) {
        let mut filler = std::ptr::null_mut();
        cu!(cuStreamCreate(&raw mut filler, 1));
        if self.result.is_null() {
            let mut result = std::ptr::null_mut();
            cu!(cuMemHostAlloc(&raw mut result, 4096, 3));
            self.result = result.cast();
        }
        self.contexts[slot] = Some(Context { handle, device, primary, filler, peers: BTreeSet::new() });
    }

    /// What ends the primary context of a device, perhaps: everything that uses its memory has ended before.
    fn about_to_end(&mut self, device: u64, act: impl FnOnce(i32) -> u32) -> u32 {
        let is = |context: &Option<Context>| {
            context.as_ref().is_some_and(|context| context.primary && context.device == device as usize)
        };
        let slot = self.contexts.iter().position(is);
        if slot.is_some() {
            self.settle_all();
        }
        let code = act(device as i32);
        if let Some(slot) = slot
            && self.active(device) != 1
        {
            self.end_context(slot);
        }
        code
    }

    fn active(&self, device: u64) -> i32 {
        let (mut flags, mut active) = (0, -1);
        cu!(cuDevicePrimaryCtxGetState(device as i32, &raw mut flags, &raw mut active));
        active
    }

    fn primary_state(&self, device: u64) -> String {
        let (mut flags, mut active) = (0, -1);
        let code = cu!(cuDevicePrimaryCtxGetState(device as i32, &raw mut flags, &raw mut active));
        format!("{code} flags {flags} active {active}")
    }

    /// A context is gone, and all that was in it.
    fn end_context(&mut self, slot: usize) {
        self.contexts[slot] = None;
        for stream in &mut self.streams {
            stream.take_if(|stream| stream.context == slot);
        }
        for module in &mut self.modules {
            module.take_if(|(_, context)| *context == slot);
        }
        // Events and graphs are not asked for any more: what they answer differs between drivers.
        self.events = [None; SLOTS];
        for graph in &mut self.graphs {
            graph.take_if(|graph| graph.context == slot);
        }
        for executable in &mut self.executables {
            executable.take_if(|executable| executable.context == slot);
        }
        for memory in self.memories.iter_mut().flatten() {
            let of = memory.context == slot && memory.kind != crate::world::Kind::Reserved;
            memory.gone |= of;
        }
        for context in self.contexts.iter_mut().flatten() {
            context.peers.remove(&slot);
        }
        // Pinned memory went with the context that it was made in; another one holds results now.
        self.result = std::ptr::null_mut();
        let heir = self.contexts.iter().flatten().next().map(|context| context.handle);
        if let Some(heir) = heir {
            let mut result = std::ptr::null_mut();
            cu!(cuCtxPushCurrent_v2(heir));
            cu!(cuMemHostAlloc(&raw mut result, 4096, 3));
            cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
            self.result = result.cast();
        }
    }

    pub(crate) fn run_streams(&mut self, op: &Op) -> Option<String> {
        let [first, second] = [0, 1].map(|index| op.args.get(index).copied().unwrap_or(0));
        let code = match op.verb() {
            "stream" => {
                let (slot, context) = ((first.checked_sub(FIRST_STREAM)?) as usize % SLOTS, self.current()?);
                if self.streams[slot].is_some() {
                    return None;
                }
                let mut handle = std::ptr::null_mut();
                let code = cu!(cuStreamCreate(&raw mut handle, second as u32));
                if code == 0 {
                    self.streams[slot] = Some(Stream { handle, context });
                }
                code
            }
            "stream_end" => {
                let slot = (first.checked_sub(FIRST_STREAM)?) as usize % SLOTS;
                let stream = self.streams[slot].take()?;
                self.outlive(stream);
                self.captured.remove(&self.key(stream.handle, stream.context));
                cu!(cuStreamDestroy_v2(stream.handle))
            }
            "stream_sync" => {
                let (stream, _) = self.stream(first)?;
                cu!(cuStreamSynchronize(stream))
            }
            "stream_query" => {
                let (stream, _) = self.stream(first)?;
                settled(cu!(cuStreamQuery(stream)))
            }
            "stream_wait" => {
                let ((stream, context), event) = (self.stream(first)?, self.events[second as usize % SLOTS]?);
                self.outlive(Stream { handle: stream, context });
                cu!(cuStreamWaitEvent(stream, event, 0))
            }
            "stream_ctx" => {
                let (stream, _) = self.stream(first)?;
                let mut context = std::ptr::null_mut();
                let code = cu!(cuStreamGetCtx(stream, &raw mut context));
                return Some(format!("{code} {}", self.context_name(context)));
            }
            "event" => {
                let slot = first as usize % SLOTS;
                if self.events[slot].is_some() || self.current().is_none() {
                    return None;
                }
                let mut event = std::ptr::null_mut();
                let code = cu!(cuEventCreate(&raw mut event, CU_EVENT_DISABLE_TIMING as u32));
                if code == 0 {
                    self.events[slot] = Some(event);
                }
                code
            }
            "event_end" => {
                let event = self.events[first as usize % SLOTS].take()?;
                cu!(cuEventDestroy_v2(event))
            }
            "record" => {
                let (event, (stream, _)) = (self.events[first as usize % SLOTS]?, self.stream(second)?);
                cu!(cuEventRecord(event, stream))
            }
            "event_sync" => {
                let event = self.events[first as usize % SLOTS]?;
                cu!(cuEventSynchronize(event))
            }
            "event_query" => {
                let event = self.events[first as usize % SLOTS]?;
                settled(cu!(cuEventQuery(event)))
            }
            _ => return None,
        };
        Some(code.to_string())
    }

    /// The stream goes, or is captured from now on: what it used last is waited for by an event in its place.
    pub(crate) fn outlive(&mut self, stream: Stream) {
        let mine =
            |last: &Option<Use>| matches!(last, Some(Use::Stream(handle, _)) if *handle == stream.handle);
        if !self.memories.iter().flatten().any(|memory| mine(&memory.last)) {
            return;
        }
        let last = self.event_in(stream.handle, stream.context).map(Use::Event);
        for memory in self.memories.iter_mut().flatten() {
            if mine(&memory.last) {
                memory.last = last;
            }
        }
    }

    /// An event in a stream that is not captured.
    pub(crate) fn event_in(
        &self,
        stream: cudarc::driver::sys::CUstream,
        context: usize,
    ) -> Option<cudarc::driver::sys::CUevent> {
        let context = self.contexts[context].as_ref()?;
        relaxed(|| {
            let mut event = std::ptr::null_mut();
            cu!(cuCtxPushCurrent_v2(context.handle));
            let made = cu!(cuEventCreate(&raw mut event, CU_EVENT_DISABLE_TIMING as u32));
            let recorded = cu!(cuEventRecord(event, stream));
            if recorded != 0 {
                cu!(cuStreamSynchronize(stream));
            }
            cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
            (made == 0 && recorded == 0).then_some(event)
        })
    }
}

/// Whether work is over is a matter of time; that it can be asked is not.
fn settled(code: u32) -> u32 {
    if code == NOT_READY { 0 } else { code }
}
