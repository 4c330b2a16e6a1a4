//! Memory of a script: made and freed in every way there is.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use cudarc::driver::sys::{self, CUmemPool_attribute as Attribute};

use crate::script::Op;
use crate::world::{Kind, MEMORIES, Memory, SLOTS, Use, World, cu, pointer};

impl World {
    /// The script's own pool on the device of the context in that slot.
    fn own_pool(&mut self, context: usize) -> Option<sys::CUmemoryPool> {
        let device = self.contexts[context].as_ref()?.device;
        if self.pools[device].is_null() {
            // SAFETY: all zero is a valid value of this plain struct.
            let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
            properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            properties.location.id = device as i32;
            cu!(cuMemPoolCreate(&raw mut self.pools[device], &raw const properties));
        }
        Some(self.pools[device])
    }

    pub(crate) fn run_memory(&mut self, op: &Op) -> Option<String> {
        let [first, second, third] = [0, 1, 2].map(|index| op.args.get(index).copied().unwrap_or(0));
        let slot = first as usize % MEMORIES;
        // Known to differ: the driver refuses these during a capture in global mode (900, and the capture is lost), the
        // library lets plain memory be allocated and freed.
        let unsafe_in_captures =
            ["alloc", "pitch", "managed", "free", "host", "host_free"].contains(&op.verb());
        if unsafe_in_captures && !self.captured.is_empty() {
            return None;
        }
        let frees = ["free", "free_async", "host_free", "unregister"].contains(&op.verb());
        let is_no_address = |memory: &Memory| self.is_reused(memory) || memory.kind == Kind::Array;
        if frees && self.memories[slot].as_ref().is_some_and(is_no_address) {
            return None;
        }
        let code = match op.verb() {
            "alloc" => {
                let mut start = 0;
                self.vacate(slot)?;
                let code = cu!(cuMemAlloc_v2(&raw mut start, second as usize));
                self.keep(slot, code, Kind::Plain, start, second)
            }
            "pitch" => {
                let (mut start, mut pitch) = (0, 0);
                self.vacate(slot)?;
                let code = cu!(cuMemAllocPitch_v2(
                    &raw mut start,
                    &raw mut pitch,
                    second as usize,
                    third as usize,
                    4
                ));
                self.keep(slot, code, Kind::Plain, start, pitch as u64 * third);
                return Some(format!("{code} pitch {pitch}"));
            }
            "managed" => {
                let mut start = 0;
                self.vacate(slot)?;
                let code = cu!(cuMemAllocManaged(&raw mut start, second as usize, 1));
                self.keep(slot, code, Kind::Managed, start, second)
            }
            "alloc_async" | "alloc_pool" => {
                let (mut start, (stream, context)) = (0, self.stream(third)?);
                // There it would be the graph's.
                if self.is_captured(stream) {
                    return None;
                }
                self.vacate(slot)?;
                let code = if op.verb() == "alloc_async" {
                    cu!(cuMemAllocAsync(&raw mut start, second as usize, stream))
                } else {
                    let pool = self.own_pool(context)?;
                    cu!(cuMemAllocFromPoolAsync(&raw mut start, second as usize, pool, stream))
                };
                let code = self.keep_in(slot, code, Kind::Async, start, second, context);
                if code == 0 {
                    let set = cu!(cuMemsetD8Async(start, slot as u8, second as usize, stream));
                    self.used(slot, stream, context);
                    self.memories[slot].as_mut()?.known = set == 0;
                }
                code
            }
            "free" => {
                let memory = self.memories[slot].as_ref()?;
                let (start, context, kind, last) = (memory.start, memory.context, memory.kind, memory.last);
                if kind == Kind::Async || kind == Kind::Managed || self.current() != Some(context) {
                    self.settle(last);
                } else if let Some(Use::Stream(_, of) | Use::Default(_, of, _, _)) = last
                    && of != context
                {
                    self.settle(last);
                } else if matches!(last, Some(Use::Event(_)))
                    || matches!(last, Some(Use::Default(stream, ..)) if stream as u64 == 2)
                {
                    self.settle(last);
                }
                let code = cu!(cuMemFree_v2(start + second));
                if code == 0
                    && let Some(memory) = &mut self.memories[slot]
                {
                    memory.gone = true;
                    // One that is refused waits for nothing.
                    memory.last = None;
                }
                code
            }
            "free_async" => {
                let (stream, context) = self.stream(second)?;
                let start = self.memories[slot].as_ref()?.start;
                self.before(slot, stream);
                let code = cu!(cuMemFreeAsync(start, stream));
                if code == 0 {
                    self.used(slot, stream, context);
                    let last = self.memories[slot].as_mut().and_then(|memory| memory.last.take());
                    self.settle(last);
                    let memory = self.memories[slot].as_mut()?;
                    memory.gone = true;
                }
                code
            }
            "threshold" => {
                let mut pool = std::ptr::null_mut();
                cu!(cuDeviceGetDefaultMemPool(&raw mut pool, first as i32));
                let mut bytes = second;
                cu!(cuMemPoolSetAttribute(
                    pool,
                    Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                    (&raw mut bytes).cast()
                ))
            }
            "trim" => {
                let mut pool = std::ptr::null_mut();
                cu!(cuDeviceGetDefaultMemPool(&raw mut pool, first as i32));
                cu!(cuMemPoolTrimTo(pool, 0))
            }
            "books" => {
                let (mut pool, mut used) = (std::ptr::null_mut(), 0_u64);
                cu!(cuDeviceGetDefaultMemPool(&raw mut pool, first as i32));
                let code = cu!(cuMemPoolGetAttribute(
                    pool,
                    Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
                    (&raw mut used).cast()
                ));
                return Some(format!("{code} used {used}"));
            }
            "host" => {
                let mut start = std::ptr::null_mut();
                self.vacate(slot)?;
                let code = cu!(cuMemHostAlloc(&raw mut start, second as usize, 3));
                self.keep(slot, code, Kind::Host, start as u64, second)
            }
            "host_free" => {
                let memory = self.memories[slot].as_mut()?;
                let (start, last) = (memory.start, memory.last.take());
                self.settle(last);
                let code = cu!(cuMemFreeHost(pointer(start)));
                if code == 0
                    && let Some(memory) = &mut self.memories[slot]
                {
                    memory.gone = true;
                }
                code
            }
            "register" => {
                self.vacate(slot)?;
                let mut own = vec![0_u8; second as usize + 4096];
                let start = (own.as_mut_ptr() as u64).next_multiple_of(4096);
                let code = cu!(cuMemHostRegister_v2(pointer(start), second as usize, 0));
                self.keep(slot, code, Kind::Registered, start, second);
                if let Some(memory) = &mut self.memories[slot] {
                    memory.own = own;
                }
                code
            }
            "unregister" => {
                let memory = self.memories[slot].as_mut()?;
                let (start, last) = (memory.start, memory.last.take());
                self.settle(last);
                let code = cu!(cuMemHostUnregister(pointer(start)));
                if code == 0
                    && let Some(memory) = &mut self.memories[slot]
                {
                    memory.gone = true;
                }
                code
            }
            _ => return None,
        };
        Some(code.to_string())
    }

    /// Makes room in a slot: only what is gone makes room.
    pub(crate) fn vacate(&mut self, slot: usize) -> Option<()> {
        let free = self.memories[slot].as_ref().is_none_or(|memory| memory.gone);
        // Graphs know memory by its slot.
        let named = |uses: &std::collections::BTreeSet<usize>| uses.contains(&slot);
        let used = self.graphs.iter().flatten().any(|graph| named(&graph.uses))
            || self.executables.iter().flatten().any(|executable| named(&executable.uses))
            || self.captured.values().any(|capture| named(&capture.uses));
        (free && !used).then(|| self.memories[slot] = None)
    }

    fn keep(&mut self, slot: usize, code: u32, kind: Kind, start: u64, bytes: u64) -> u32 {
        let Some(context) = self.current() else { return code };
        self.keep_in(slot, code, kind, start, bytes, context)
    }

    fn keep_in(&mut self, slot: usize, code: u32, kind: Kind, start: u64, bytes: u64, context: usize) -> u32 {
        if code != 0 {
            return code;
        }
        self.named(start, bytes, "m");
        let value = (slot * 17 + 1) as u8;
        let known = match kind {
            Kind::Host | Kind::Registered => {
                // SAFETY: pinned just now, and used by nobody.
                unsafe { std::ptr::write_bytes(start as *mut u8, value, bytes as usize) };
                true
            }
            // In its own stream: another one would have to wait for it.
            Kind::Async => false,
            _ => self.fill(context, start, bytes, value),
        };
        let device = self.contexts[context].as_ref().map_or(0, |context| context.device);
        self.memories[slot] = Some(Memory {
            kind,
            start,
            bytes,
            context,
            device,
            known,
            gone: false,
            freed_at: 0,
            last: None,
            mapped: std::collections::BTreeMap::new(),
            own: Vec::new(),
        });
        code
    }

    pub(crate) fn physical(&self, number: u64) -> Option<&crate::world::Physical> {
        self.physicals[number as usize % SLOTS].as_ref()
    }
}
