//! Devices: how many, which, and what they can do.

use std::ffi::{c_char, c_int, c_uint};

use cudarc::driver::sys::{CUdevice, CUresult, CUuuid};
use nvshare_sim_card::DEVICE_NAME;

use crate::call::Outcome;
use crate::device;
use crate::export::export;
use crate::parameters::{Count, Out, Places, Text};

export! {
    fn cuDeviceGet(found: Out<CUdevice>, ordinal: c_int) |cx| {
        let index = device::index(ordinal)?;
        found.set(index as CUdevice)
    }

    fn cuDeviceGetCount(count: Out<c_int>) |cx| {
        count.set(device::count() as c_int)
    }

    fn cuDeviceGetName(name: Places<c_char>, length: Count<c_int>, of: CUdevice) |cx| {
        device::index(of)?;
        put_text(&name, length, DEVICE_NAME)
    }

    fn cuDeviceGetUuid(uuid: Out<CUuuid>, of: CUdevice) |cx| {
        uuid.set(uuid_of(of)?)
    }

    fn cuDeviceGetUuid_v2(uuid: Out<CUuuid>, of: CUdevice) |cx| {
        uuid.set(uuid_of(of)?)
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, of: CUdevice) |cx| {
        device::index(of)?;
        bytes.set(device::card().config().card_bytes as usize)
    }

    fn cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, of: CUdevice) |cx| {
        device::index(of)?;
        major.set(device::CAPABILITY.0)?;
        minor.set(device::CAPABILITY.1)
    }

    fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_uint, of: CUdevice) |cx| {
        let found = device::attribute(device::index(of)?, attribute).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        value.set(found)
    }

    fn cuDeviceCanAccessPeer(can: Out<c_int>, of: CUdevice, peer: CUdevice) |cx| {
        let different = device::index(of)? != device::index(peer)?;
        can.set(c_int::from(different))
    }

    fn cuDeviceGetP2PAttribute(value: Out<c_int>, attribute: c_uint, from: CUdevice, to: CUdevice) |cx| {
        if device::index(from)? == device::index(to)? {
            return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
        }
        let found = match attribute {
            2 | 3 => 1, // access, native atomics
            1 | 4 => 0, // performance rank, arrays
            _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        };
        value.set(found)
    }

    fn cuDeviceGetPCIBusId(text: Places<c_char>, length: Count<c_int>, of: CUdevice) |cx| {
        let index = device::index(of)?;
        put_text(&text, length, &format!("0000:{:02X}:00.0", index + 1))
    }

    fn cuDeviceGetByPCIBusId(found: Out<CUdevice>, text: Text) |cx| {
        let text = text.get()?.to_string_lossy();
        let bus = text.rsplit(':').nth(1).and_then(|bus| c_int::from_str_radix(bus, 16).ok());
        let index = device::index(bus.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)? - 1)?;
        found.set(index as CUdevice)
    }

    fn cuDeviceGetExecAffinitySupport(supported: Out<c_int>, kind: c_uint, of: CUdevice) |cx| {
        device::index(of)?;
        supported.set(0)
    }
}

fn uuid_of(of: CUdevice) -> Outcome<CUuuid> {
    Ok(CUuuid { bytes: device::card().uuid(device::index(of)?).map(|byte| byte as c_char) })
}

/// Writes as much of `text` as fits, and a zero.
fn put_text(to: &Places<c_char>, length: Count<c_int>, text: &str) -> Outcome {
    let room = Count::from(length).get();
    if to.is_null() || room == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let fits = text.bytes().take(room - 1);
    to.fill(length, fits.chain([0]).map(|byte| Ok(byte as c_char)))
}
