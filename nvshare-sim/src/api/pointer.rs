//! What the driver says about a pointer.

#![expect(unsafe_code, reason = "an attribute's value, whose type depends on which it is")]

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUdeviceptr, CUresult};

use crate::call::Outcome;
use crate::context::CONTEXTS;
use crate::export::export;
use crate::memory::space::{self, Area, Kind};
use crate::memory::{GRANULARITY, mapping, physical};
use crate::parameters::{Count, In, List};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`, the only one that can be set.
const SYNC_MEMOPS: c_uint = 6;

/// `CU_POINTER_ATTRIBUTE_P2P_TOKENS`, which can be asked for alone only.
const TOKENS: c_uint = 5;

/// An attribute's value, with the width it is written in.
#[derive(Clone, Copy)]
enum Value {
    Flag(bool),
    Int(u32),
    Long(u64),
    /// The tokens for third-party drivers, which are always zero.
    Tokens,
}

impl Value {
    /// # Safety
    /// `to` is valid for a write of the attribute's type.
    unsafe fn write(self, to: *mut c_void) {
        // SAFETY: by this function's contract.
        unsafe {
            match self {
                Value::Flag(value) => to.cast::<u8>().write(value.into()),
                Value::Int(value) => to.cast::<u32>().write(value),
                Value::Long(value) => to.cast::<u64>().write(value),
                Value::Tokens => to.cast::<[u32; 3]>().write([0; 3]),
            }
        }
    }

    /// What `cuPointerGetAttributes` gives where the pointer has no such attribute (seen on an H200): zero of the right
    /// width, but for an address with nothing behind it the address itself as the host's, and the reservation around it.
    /// Without one, range and size are not written at all (`None`). An error: it cannot be asked in a list.
    fn none(attribute: c_uint, address: u64, area: Option<&Area>) -> Outcome<Option<Value>> {
        let bare =
            area.is_none_or(|area| matches!(area.kind, Kind::Reserved(_)) && mapping::look(address).is_err());
        Ok(Some(match attribute {
            4 if bare => Value::Long(address),
            11 => return Ok(area.map(|area| Value::Long(area.start))),
            12 => return Ok(area.map(|area| Value::Long(area.bytes))),
            1 | 3 | 4 | 7 | 14 | 17..=20 => Value::Long(0),
            2 | 16 => Value::Int(0),
            9 => Value::Int(-2_i32 as u32),
            6 | 8 | 10 | 13 | 15 | 21 => Value::Flag(false),
            _ => return Err(INVALID),
        }))
    }
}

/// One attribute of a pointer into an area.
fn attribute(area: &Area, address: u64, attribute: c_uint) -> Outcome<Value> {
    let pinned = matches!(area.kind, Kind::Pinned(_));
    let managed = matches!(area.kind, Kind::Managed(_));
    // Of addresses that are only reserved the driver says nothing at all.
    let mapped = match area.kind {
        Kind::Reserved(_) => Some(mapping::look(address)?),
        _ => None,
    };
    let known = mapped.as_ref().and_then(|mapping| physical::properties(mapping.handle));
    let pool = match &area.kind {
        Kind::Plain(pool) => pool.as_ref(),
        _ => None,
    };
    let chunk = pool.and_then(|pool| pool.chunk(area.start));
    // Of mapped memory: what the device of the current context may do.
    let may = || {
        let here = crate::context::current().map(|context| context.device);
        mapped.as_ref().map(|mapping| here.map_or(mapping::NO_ACCESS, |here| mapping.access[here]))
    };
    Ok(match attribute {
        1 => {
            let context = CONTEXTS.find(|context| context.id == area.context);
            Value::Long(context.map_or(0, |context| context.handle() as u64))
        }
        2 => Value::Int(if pinned { 1 } else { 2 }),
        3 if may() == Some(mapping::NO_ACCESS) => return Err(INVALID),
        3 => Value::Long(address),
        // Device memory has no address for the host.
        4 if pinned || managed => Value::Long(address),
        4 => return Err(INVALID),
        TOKENS if !pinned && !managed => Value::Tokens,
        // Always on for memory that the application mapped, and for managed memory.
        SYNC_MEMOPS => Value::Flag(managed || mapped.is_some() || area.sync_memops.load(Ordering::Relaxed)),
        7 => Value::Long(mapped.as_ref().map_or(area.id, |mapping| mapping.number)),
        8 => Value::Flag(managed),
        9 => Value::Int(known.map_or(area.device, |(device, _)| device) as u32),
        10 => Value::Flag(matches!(&area.kind, Kind::Plain(None))),
        11 => Value::Long(area.start),
        12 => Value::Long(area.bytes),
        13 => Value::Flag(true),
        14 => Value::Long(known.map_or(0, |(_, properties)| u64::from(properties & 0xffff))),
        15 => Value::Flag(match known {
            Some((_, properties)) => properties & physical::RDMA_CAPABLE != 0,
            None => matches!(area.kind, Kind::Plain(None)),
        }),
        16 => Value::Int(may().unwrap_or(mapping::READ_WRITE).into()),
        17 => Value::Long(pool.map_or(0, |pool| pool.handle() as u64)),
        20 if pinned || managed => Value::Long(0),
        20 => Value::Long(mapped.map_or(pool.map_or(area.id, |pool| pool.id), |mapping| mapping.handle.0)),
        18 => Value::Long(match (mapped, chunk) {
            (Some(mapping), _) => mapping.bytes,
            (None, Some((_, bytes))) => bytes,
            (None, None) => area.bytes.next_multiple_of(GRANULARITY),
        }),
        19 => Value::Long(match (mapped, chunk) {
            (Some(mapping), _) => mapping.start,
            (None, Some((start, _))) => start,
            (None, None) => area.start,
        }),
        21 => Value::Flag(false),
        _ => return Err(INVALID),
    })
}

export! {
    fn cuPointerGetAttribute(data: *mut c_void, asked: c_uint, pointer: CUdeviceptr) |cx| {
        if data.is_null() {
            return Err(INVALID);
        }
        let area = space::find(pointer).ok_or(INVALID)?;
        let value = attribute(&area, pointer, asked)?;
        // SAFETY: the caller passes room for the attribute.
        unsafe { value.write(data) };
        Ok(())
    }

    fn cuPointerGetAttributes(
        count: Count<c_uint>, asked: List<c_uint>, data: List<*mut c_void>, pointer: CUdeviceptr,
    ) |cx| {
        asked.needed()?;
        data.needed()?;
        let (asked, data) = (asked.of(count)?, data.of(count)?);
        let area = space::find(pointer);
        let mut answers = Vec::with_capacity(asked.len());
        for (&asked, &to) in asked.iter().zip(data) {
            let none = Value::none(asked, pointer, area.as_deref())?;
            if to.is_null() {
                return Err(INVALID);
            }
            let known = area.as_ref().and_then(|area| attribute(area, pointer, asked).ok());
            answers.extend(known.or(none).map(|value| (value, to)));
        }
        for (value, to) in answers {
            // SAFETY: the caller passes room for the attribute.
            unsafe { value.write(to) };
        }
        Ok(())
    }

    fn cuPointerSetAttribute(value: In<c_int>, attribute: c_uint, pointer: CUdeviceptr) |cx| {
        let area = space::find(pointer).ok_or(INVALID)?;
        let value = value.given().filter(|_| attribute == SYNC_MEMOPS).ok_or(INVALID)?;
        if matches!(area.kind, Kind::Reserved(_)) {
            mapping::look(pointer)?;
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        area.sync_memops.store(*value != 0, Ordering::Relaxed);
        Ok(())
    }
}
