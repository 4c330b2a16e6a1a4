//! The just-in-time compiler. As in a real driver it is a library of its own, which is opened when PTX is to be compiled, so that
//! such a call takes the loader's lock; a compiled image can be loaded without it.

#![expect(unsafe_code, reason = "images of the caller's, whose first bytes tell how long they are")]

use std::ffi::{CStr, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;
use crate::handles::Registry;
use crate::ptx::{self, Entry};

/// How a compiled image begins, as any ELF file; the text follows, and ends with a zero.
const CUBIN: &[u8] = b"\x7fELFnvshare-sim";
const ELF: [u8; 4] = *b"\x7fELF";
const FATBIN: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
const FATBIN_WRAPPER: [u8; 4] = 0x4662_43b1_u32.to_le_bytes();

/// Linkers that were made and not destroyed.
pub(crate) static LINKERS: Registry<Linker> = Registry::new();

/// What `cuLinkCreate` makes.
#[derive(Default)]
pub(crate) struct Linker {
    text: Mutex<Option<String>>,
    /// The application's until the linker is destroyed.
    image: Mutex<Vec<u8>>,
}

impl Linker {
    /// Takes PTX text, with or without a zero at its end. One is enough for us.
    pub(crate) fn add(&self, text: &[u8]) -> Outcome {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text).into_owned();
        compile(&text)?;
        let before = self.text.lock().unwrap_or_else(PoisonError::into_inner).replace(text);
        if before.is_some() {
            eprintln!("nvshare-sim: more than one input of a linker is not simulated");
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        Ok(())
    }

    /// The compiled image and its length.
    pub(crate) fn complete(&self) -> Outcome<(*mut c_void, usize)> {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text.as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        *image = [CUBIN, text.as_bytes(), &[0]].concat();
        Ok((image.as_mut_ptr().cast(), image.len()))
    }
}

/// The entries of an image.
pub(crate) fn entries(image: *const c_void) -> Outcome<Vec<Entry>> {
    if image.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: every image has at least four bytes: a binary's magic number, or text that ends with a zero.
    let magic = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    if magic == ELF {
        // SAFETY: an ELF file is longer than that, and so is an image of ours.
        let start = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), CUBIN.len()) };
        if start == CUBIN {
            // SAFETY: ours; its text ends with a zero.
            let text = unsafe { CStr::from_ptr(image.cast::<std::ffi::c_char>().add(CUBIN.len())) };
            return ptx::parse(&text.to_string_lossy()).ok_or(CUresult::CUDA_ERROR_INVALID_IMAGE);
        }
    }
    if [ELF, FATBIN, FATBIN_WRAPPER].contains(&magic) {
        eprintln!("nvshare-sim: a module that is not PTX text cannot be loaded");
        return Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    }
    // SAFETY: what is no binary is text that ends with a zero, as the driver API demands.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    if text.trim().is_empty() {
        return Err(CUresult::CUDA_ERROR_INVALID_IMAGE);
    }
    compile(&text)
}

fn compile(text: &str) -> Outcome<Vec<Entry>> {
    // SAFETY: asks for the program itself, which is there: only the loader's lock is taken, and a reference given back.
    unsafe {
        let program = libc::dlopen(std::ptr::null(), libc::RTLD_LAZY);
        if !program.is_null() {
            libc::dlclose(program);
        }
    }
    ptx::parse(text).ok_or(CUresult::CUDA_ERROR_INVALID_PTX)
}
