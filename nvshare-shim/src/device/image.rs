//! The fingerprint kernel as an image for a kind of device. Compiling it opens the driver's compiler, a library of its own, and
//! with that takes the loader's lock, which a thread that waits at the gate may hold: so it is done on the application's
//! thread, when the process first allocates and nothing of its memory can be missing. Loading the image takes no such lock
//! (both seen on an H200).

#![expect(unsafe_code, reason = "the driver is called")]

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvshare_common::fingerprint::PTX;

use super::Device;
use crate::cuda::{CUresult, sys};
use crate::driver::driver;
use crate::{gate, log};

/// `CU_JIT_INPUT_PTX`.
const INPUT_PTX: u32 = 1;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [u32; 2] = [75, 76];

/// In words, so that it is aligned as an ELF file must be.
pub type Image = Arc<[u64]>;

/// By compute capability; none where it is being compiled, or cannot be.
static IMAGES: Mutex<BTreeMap<[i32; 2], Option<Image>>> = Mutex::new(BTreeMap::new());

fn images() -> MutexGuard<'static, BTreeMap<[i32; 2], Option<Image>>> {
    IMAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The image for this device, if there is one.
pub fn of(device: &Device) -> Option<Image> {
    let kind = capability(device)?;
    images().get(&kind)?.clone()
}

/// Compiles the kernel for this device, if nobody has before; on a thread of the application's, in a context of the device.
/// Who comes meanwhile does not wait: it may hold the lock that is waited for here.
pub fn make(device: &Device) {
    debug_assert!(!crate::life::is_engine(), "a thread of ours would wait for the loader's lock here");
    let Some(kind) = capability(device) else { return };
    {
        let mut images = images();
        if images.contains_key(&kind) {
            return;
        }
        images.insert(kind, None);
    }
    // No drain ends meanwhile: what it would let others do may need what the driver holds here.
    let inside = gate::pass_at_once();
    let compiled = compile();
    drop(inside);
    match compiled {
        Ok(image) => {
            images().insert(kind, Some(image));
        }
        Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
            images().remove(&kind);
        }
        Err(code) => log::warning!(
            "the fingerprint kernel cannot be used on {} ({}): every swap-out copies everything",
            device.id,
            driver().error_name(code)
        ),
    }
}

fn capability(device: &Device) -> Option<[i32; 2]> {
    let mut numbers = [0; 2];
    for (number, attribute) in numbers.iter_mut().zip(CAPABILITY) {
        // SAFETY: the driver stores a number.
        unsafe { driver().cuDeviceGetAttribute(number, attribute, device.kind.ordinal) }.result().ok()?;
    }
    Some(numbers)
}

fn compile() -> Result<Image, CUresult> {
    let text = CString::new(PTX).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?.into_bytes_with_nul();
    let mut linker = null_mut();
    // SAFETY: no options; a place for the handle.
    unsafe { driver().cuLinkCreate_v2(0, null_mut(), null_mut(), &raw mut linker) }.result()?;
    let image = add(linker, &text).and_then(|()| complete(linker));
    // SAFETY: it was made here, and what it owns was copied.
    let _ = unsafe { driver().cuLinkDestroy(linker) };
    image
}

fn add(linker: sys::CUlinkState, text: &[u8]) -> Result<(), CUresult> {
    let name = c"nvshare fingerprint".as_ptr();
    let data = text.as_ptr().cast_mut().cast::<c_void>();
    // SAFETY: the text is as long as is said, only read, and not kept; no options.
    unsafe { driver().cuLinkAddData_v2(linker, INPUT_PTX, data, text.len(), name, 0, null_mut(), null_mut()) }
        .result()
}

fn complete(linker: sys::CUlinkState) -> Result<Image, CUresult> {
    let (mut at, mut bytes) = (null_mut(), 0);
    // SAFETY: places for the image and its length.
    unsafe { driver().cuLinkComplete(linker, &raw mut at, &raw mut bytes) }.result()?;
    // SAFETY: the driver keeps so many bytes there until the linker is destroyed.
    let image = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), bytes) };
    let word = |piece: &[u8]| {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        u64::from_ne_bytes(word)
    };
    Ok(image.chunks(8).map(word).collect())
}
