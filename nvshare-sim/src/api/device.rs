//! Devices: how many, which, and what they can do.

use std::ffi::{CStr, c_char, c_int, c_uint};

use cudarc::driver::sys::{CUdevice, CUresult, CUuuid};
use nvshare_sim_card::DEVICE_NAME;

use crate::device;
use crate::export::{Outcome, export, put};

export! {
    fn cuDeviceGet(found: *mut CUdevice, ordinal: c_int) |cx| {
        let index = device::index(ordinal)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(found, index as CUdevice) }
    }

    fn cuDeviceGetCount(count: *mut c_int) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(count, device::count() as c_int) }
    }

    fn cuDeviceGetName(name: *mut c_char, length: c_int, of: CUdevice) |cx| {
        device::index(of)?;
        // SAFETY: the caller's buffer of the caller's length.
        unsafe { put_text(name, length, DEVICE_NAME) }
    }

    fn cuDeviceGetUuid(uuid: *mut CUuuid, of: CUdevice) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(uuid, uuid_of(of)?) }
    }

    fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, of: CUdevice) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(uuid, uuid_of(of)?) }
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, of: CUdevice) |cx| {
        device::index(of)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(bytes, device::card().config().card_bytes as usize) }
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, of: CUdevice) |cx| {
        device::index(of)?;
        // SAFETY: out-parameters of the driver API.
        unsafe {
            put(major, device::CAPABILITY.0)?;
            put(minor, device::CAPABILITY.1)
        }
    }

    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, of: CUdevice) |cx| {
        let found = device::attribute(device::index(of)?, attribute).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(value, found) }
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, of: CUdevice, peer: CUdevice) |cx| {
        let different = device::index(of)? != device::index(peer)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(can, c_int::from(different)) }
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, attribute: c_uint, from: CUdevice, to: CUdevice) |cx| {
        if device::index(from)? == device::index(to)? {
            return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
        }
        let found = match attribute {
            2 | 3 => 1, // access, native atomics
            1 | 4 => 0, // performance rank, arrays
            _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(value, found) }
    }

    fn cuDeviceGetPCIBusId(text: *mut c_char, length: c_int, of: CUdevice) |cx| {
        let index = device::index(of)?;
        // SAFETY: the caller's buffer of the caller's length.
        unsafe { put_text(text, length, &format!("0000:{:02X}:00.0", index + 1)) }
    }

    fn cuDeviceGetByPCIBusId(found: *mut CUdevice, text: *const c_char) |cx| {
        if text.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: a C string, as the driver API demands.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        let bus = text.rsplit(':').nth(1).and_then(|bus| c_int::from_str_radix(bus, 16).ok());
        let index = device::index(bus.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)? - 1)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(found, index as CUdevice) }
    }

    fn cuDeviceGetExecAffinitySupport(supported: *mut c_int, kind: c_uint, of: CUdevice) |cx| {
        device::index(of)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(supported, 0) }
    }
}

fn uuid_of(of: CUdevice) -> Outcome<CUuuid> {
    Ok(CUuuid { bytes: device::card().uuid(device::index(of)?).map(|byte| byte as c_char) })
}

/// Writes as much of `text` as fits, and a zero.
///
/// # Safety
/// `to` is null or valid for writes of `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_int, text: &str) -> Outcome {
    if to.is_null() || length <= 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let fits = text.len().min(length as usize - 1);
    // SAFETY: `fits` and the zero are within the buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, fits);
        to.add(fits).write(0);
    }
    Ok(())
}
