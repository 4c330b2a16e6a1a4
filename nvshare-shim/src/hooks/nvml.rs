//! NVML's two questions about memory, answered for this process: of a device for which the agent set terms it says the size and
//! the free memory that the driver's own questions are answered with. Devices are told by their UUID, so no context is needed.
//! All else, other devices, and a process that has not begun to use CUDA are NVML's.
//!
//! Only what looks a function up by name meets this (all bindings do: ctypes, libloading, `dlsym` in C). Nothing is exported: a
//! program without NVML finds nothing of it here.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use nvshare_common::ids::DeviceId;

use crate::allocation::pools;
use crate::device::{self, sizes};
use crate::driver::real::real_dlsym;
use crate::life;
use crate::uncancelled::Uncancelled;

type MemoryInfo = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Uuid = unsafe extern "C" fn(*mut c_void, *mut c_char, c_uint) -> c_int;

/// `nvmlMemory_t`.
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`; the caller sets the version.
#[repr(C)]
struct Memory2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// NVML's own functions: of the first copy of the library that was looked into.
static FIRST: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static SECOND: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
static UUID: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// What a program that looks `name` up with `handle` shall get; `None`: what it would get anyway.
pub(crate) fn look_up(handle: *mut c_void, name: &CStr) -> Option<*const c_void> {
    let (real, ours) = match name.to_bytes() {
        b"nvmlDeviceGetMemoryInfo" => (&FIRST, memory_info as *const c_void),
        b"nvmlDeviceGetMemoryInfo_v2" => (&SECOND, memory_info_v2 as *const c_void),
        _ => return None,
    };
    if handle == libc::RTLD_NEXT {
        return None;
    }
    // SAFETY: handle and name are the application's own arguments.
    let bare = unsafe { real_dlsym(handle, name.as_ptr()) };
    // SAFETY: the same handle, and a C string.
    let uuid = unsafe { real_dlsym(handle, c"nvmlDeviceGetUUID".as_ptr()) };
    if bare.is_null() || uuid.is_null() {
        return None;
    }
    let first = |at: &AtomicPtr<c_void>, found| {
        let before = at.compare_exchange(null_mut(), found, Ordering::AcqRel, Ordering::Acquire);
        before.map_or_else(|before| before == found, |_| true)
    };
    // Another copy of the library has other handles.
    (first(&UUID, uuid) && first(real, bare)).then_some(ours)
}

unsafe extern "C" fn memory_info(device: *mut c_void, to: *mut c_void) -> c_int {
    let _whole = Uncancelled::begin();
    // SAFETY: the application's own arguments.
    let result = unsafe { ask(&FIRST, device, to) };
    if result == 0 && !to.is_null() {
        // SAFETY: NVML has just stored a `nvmlMemory_t` there.
        let memory = unsafe { &mut *to.cast::<Memory>() };
        if let Some((total, free)) = figures(device, memory.total) {
            *memory = Memory { total, free, used: total - free };
        }
    }
    result
}

unsafe extern "C" fn memory_info_v2(device: *mut c_void, to: *mut c_void) -> c_int {
    let _whole = Uncancelled::begin();
    // SAFETY: the application's own arguments.
    let result = unsafe { ask(&SECOND, device, to) };
    if result == 0 && !to.is_null() {
        // SAFETY: NVML has just stored a `nvmlMemory_v2_t` there.
        let memory = unsafe { &mut *to.cast::<Memory2>() };
        if let Some((total, free)) = figures(device, memory.total) {
            let free = free.min(total.saturating_sub(memory.reserved));
            (memory.total, memory.free) = (total, free);
            memory.used = total.saturating_sub(memory.reserved) - free;
        }
    }
    result
}

unsafe fn ask(real: &AtomicPtr<c_void>, device: *mut c_void, to: *mut c_void) -> c_int {
    // SAFETY: our function was only given out after NVML's own was stored, which has this signature.
    let real: MemoryInfo = unsafe { std::mem::transmute(real.load(Ordering::Acquire)) };
    // SAFETY: the caller's promise.
    unsafe { real(device, to) }
}

fn figures(device: *mut c_void, bare: u64) -> Option<(u64, u64)> {
    if !life::active() {
        return None;
    }
    // A mistake of ours must not unwind into the application.
    catch_unwind(AssertUnwindSafe(|| {
        let id = id_of(device)?;
        let needed = device::by_id(id).map_or(0, |device| {
            pools::refresh();
            device.state().space.accounts().needed()
        });
        sizes::figures(id, bare, needed)
    }))
    .ok()
    .flatten()
}

fn id_of(device: *mut c_void) -> Option<DeviceId> {
    let mut text = [0; 96];
    // SAFETY: as in `ask`.
    let uuid: Uuid = unsafe { std::mem::transmute(UUID.load(Ordering::Acquire)) };
    // SAFETY: the application's own handle, and a buffer of the length that is said.
    if unsafe { uuid(device, text.as_mut_ptr(), text.len() as c_uint) } != 0 {
        return None;
    }
    // SAFETY: NVML has stored a C string.
    parse(unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().ok()?)
}

/// `GPU-` or `MIG-`, and 16 bytes in hexadecimal with dashes between.
fn parse(text: &str) -> Option<DeviceId> {
    let (_, digits) = text.split_once('-')?;
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 32).then(|| bytes.try_into().ok().map(DeviceId))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_uuid_as_nvml_writes_it() {
        let id = DeviceId(std::array::from_fn(|index| index as u8 * 17));
        assert_eq!(parse("GPU-00112233-4455-6677-8899-aabbccddeeff"), Some(id));
        assert_eq!(parse("MIG-00112233-4455-6677-8899-aabbccddeeff"), Some(id));
        assert_eq!(parse("GPU-00112233-4455-6677-8899-aabbccddeef"), None);
        assert_eq!(parse("GPU-0011223g-4455-6677-8899-aabbccddeeff"), None);
        assert_eq!(parse("MIG-GPU-00112233-4455/1/0"), None);
    }

    #[test]
    fn other_names_are_not_ours() {
        assert_eq!(look_up(libc::RTLD_DEFAULT, c"nvmlDeviceGetBAR1MemoryInfo"), None);
        assert_eq!(look_up(libc::RTLD_DEFAULT, c"nvmlDeviceGetMemoryInfo"), None, "there is no NVML here");
    }
}
