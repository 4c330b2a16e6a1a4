//! Virtual memory as a script makes it: addresses reserved, physical memory mapped there, kept, taken away.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::collections::BTreeMap;

use cudarc::driver::sys::{
    CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType_enum, CUmemAllocationProp,
    CUmemAllocationType, CUmemLocation, CUmemLocationType,
};

use crate::script::Op;
use crate::world::{Kind, MEMORIES, Mapping, Memory, Physical, SLOTS, World, cu, pointer};

pub(crate) fn place(device: u64) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device as i32 }
}

fn properties(device: u64, types: u64) -> CUmemAllocationProp {
    // SAFETY: a plain C structure, for which zeros mean nothing asked for.
    let mut properties: CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = place(device);
    properties.requestedHandleTypes.0 = types as u32;
    properties
}

impl World {
    pub(crate) fn run_vmm(&mut self, op: &Op) -> Option<String> {
        let [first, second, third, fourth, fifth] =
            [0, 1, 2, 3, 4].map(|index| op.args.get(index).copied().unwrap_or(0));
        let slot = first as usize % MEMORIES;
        let of_slot = ["unreserve", "map", "unmap", "access"].contains(&op.verb());
        // Elsewhere such ranges would reach into what happens to lie behind.
        if of_slot
            && self.memories[slot].as_ref().is_none_or(|memory| memory.kind != Kind::Reserved || memory.gone)
        {
            return None;
        }
        let code = match op.verb() {
            "reserve" => {
                let mut start = 0;
                self.vacate(slot)?;
                let code = cu!(cuMemAddressReserve(&raw mut start, second as usize, 0, 0, 0));
                if code == 0 {
                    self.named(start, second, "r");
                    self.memories[slot] = Some(Memory {
                        kind: Kind::Reserved,
                        start,
                        bytes: second,
                        context: SLOTS - 1,
                        device: 0,
                        known: true,
                        gone: false,
                        freed_at: 0,
                        last: None,
                        mapped: BTreeMap::new(),
                        own: Vec::new(),
                    });
                }
                code
            }
            "unreserve" => {
                let memory = self.memories[slot].as_mut()?;
                let code = cu!(cuMemAddressFree(memory.start, memory.bytes as usize));
                memory.gone |= code == 0;
                code
            }
            "create" => {
                let slot = first as usize % SLOTS;
                if self.physicals[slot].is_some() {
                    return None;
                }
                let (mut handle, properties) = (0, properties(third, fourth));
                let code = cu!(cuMemCreate(&raw mut handle, second as usize, &raw const properties, 0));
                if code == 0 {
                    self.made += 1;
                    let id = self.made;
                    self.physicals[slot] = Some(Physical { handle, bytes: second, id });
                }
                code
            }
            "export" => {
                let physical = self.physical(first)?;
                let (mut descriptor, kind) = (-1, CUmemAllocationHandleType_enum(second as u32));
                let to = (&raw mut descriptor).cast();
                let code = cu!(cuMemExportToShareableHandle(to, physical.handle, kind, 0));
                if code == 0 {
                    // SAFETY: the driver has just opened it, for nobody else.
                    unsafe { libc::close(descriptor) };
                }
                code
            }
            "drop" => {
                let physical = self.physicals[first as usize % SLOTS].take()?;
                cu!(cuMemRelease(physical.handle))
            }
            "map" => {
                let (handle, bytes, id) =
                    self.physical(third).map(|physical| (physical.handle, physical.bytes, physical.id))?;
                let memory = self.memories[slot].as_mut()?;
                let code = cu!(cuMemMap(memory.start + second, bytes as usize, 0, handle, 0));
                if code == 0 {
                    memory.mapped.insert(second, Mapping { bytes, physical: id, access: [0; 2] });
                }
                code
            }
            "unmap" => {
                self.settle_reserved();
                let memory = self.memories[slot].as_mut()?;
                let code = cu!(cuMemUnmap(memory.start + second, third as usize));
                if code == 0 {
                    memory.mapped.retain(|at, _| !(second..second + third).contains(at));
                }
                code
            }
            "access" => {
                // Taken away from under what uses it, access is an error for good.
                self.settle_reserved();
                let memory = self.memories[slot].as_mut()?;
                let flags = [CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_NONE; 4];
                let mut grant = CUmemAccessDesc { location: place(fourth), flags: flags[0] };
                grant.flags = match fifth {
                    0 => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_NONE,
                    1 => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
                    _ => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
                };
                let code = cu!(cuMemSetAccess(memory.start + second, third as usize, &raw const grant, 1));
                if code == 0 {
                    let mut fresh = Vec::new();
                    for (at, mapping) in memory.mapped.range_mut(second..second + third) {
                        mapping.access[fourth as usize % 2] = fifth;
                        fresh.push((memory.start + at, mapping.bytes, mapping.physical));
                    }
                    if fifth == 3 {
                        self.fill_fresh(&fresh, fourth as usize);
                    }
                }
                code
            }
            "regain" => {
                let (slot, memory) =
                    (first as usize % SLOTS, self.memories[second as usize % MEMORIES].as_ref()?);
                if self.physicals[slot].is_some() || memory.kind != Kind::Reserved {
                    return None;
                }
                let mut handle = 0;
                let code = cu!(cuMemRetainAllocationHandle(&raw mut handle, pointer(memory.start + third)));
                let around = memory.mapped.range(..=third).next_back();
                let around = around.filter(|(at, mapping)| third < *at + mapping.bytes);
                let around = around.map(|(_, mapping)| (mapping.bytes, mapping.physical));
                if let (0, Some((bytes, id))) = (code, around) {
                    self.physicals[slot] = Some(Physical { handle, bytes, id });
                } else if code == 0 {
                    cu!(cuMemRelease(handle));
                }
                code
            }
            "properties" => {
                let physical = self.physical(first)?;
                let mut found = properties(9, 0);
                let code = cu!(cuMemGetAllocationPropertiesFromHandle(&raw mut found, physical.handle));
                let (kind, types, device) =
                    (found.type_ as u32, found.requestedHandleTypes.0, found.location.id);
                let rdma = found.allocFlags.gpuDirectRDMACapable;
                return Some(format!("{code} type {kind} handles {types} device {device} rdma {rdma}"));
            }
            _ => return None,
        };
        Some(code.to_string())
    }

    /// Fills physical memory that nobody wrote yet.
    fn fill_fresh(&mut self, pieces: &[(u64, u64, u64)], device: usize) {
        let on = |context: &Option<crate::world::Context>| {
            context.as_ref().is_some_and(|context| context.device == device)
        };
        let Some(context) = self.contexts.iter().position(on) else { return };
        for (start, bytes, physical) in pieces {
            if !self.written.contains(physical) && self.fill(context, *start, *bytes, *physical as u8) {
                self.written.insert(*physical);
            }
        }
    }

    /// Whatever uses mapped memory is over: the same may be mapped elsewhere too.
    pub(crate) fn settle_reserved(&mut self) {
        for slot in 0..MEMORIES {
            let reserved = self.memories[slot].as_mut().filter(|memory| memory.kind == Kind::Reserved);
            let last = reserved.and_then(|memory| memory.last.take());
            self.settle(last);
        }
    }
}
