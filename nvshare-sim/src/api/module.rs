//! Modules and libraries: loading, and finding functions in them.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUfunction, CUkernel, CUlibrary, CUmodule, CUresult};

use crate::export::{Outcome, export, put};
use crate::handles::handle_of;
use crate::module::{KERNELS, LIBRARIES, Library, MODULES, Module};

/// `CU_MODULE_EAGER_LOADING`.
const EAGER: c_uint = 1;

export! {
    fn cuModuleLoad(made: *mut CUmodule, path: *const c_char) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe {
            let image = read(path)?;
            put(made, handle_of(&Module::from_image(&cx.context()?, image.as_ptr().cast())?))
        }
    }

    fn cuModuleLoadData(made: *mut CUmodule, image: *const c_void) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, handle_of(&Module::from_image(&cx.context()?, image)?)) }
    }

    fn cuModuleLoadDataEx(
        made: *mut CUmodule, image: *const c_void, count: c_uint, options: *const c_uint, values: *const *mut c_void,
    ) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, handle_of(&Module::from_image(&cx.context()?, image)?)) }
    }

    fn cuModuleLoadFatBinary(made: *mut CUmodule, image: *const c_void) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, handle_of(&Module::from_image(&cx.context()?, image)?)) }
    }

    fn cuModuleUnload(handle: CUmodule) |cx| {
        module(handle)?.unload();
        Ok(())
    }

    fn cuModuleGetFunction(found: *mut CUfunction, handle: CUmodule, name: *const c_char) |cx| {
        cx.context()?;
        // SAFETY: parameters as the driver API demands them.
        unsafe { put(found, module(handle)?.function(&text(name)?)?.handle()) }
    }

    fn cuModuleGetFunctionCount(count: *mut c_uint, handle: CUmodule) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(count, module(handle)?.functions.len() as c_uint) }
    }

    fn cuModuleEnumerateFunctions(found: *mut CUfunction, count: c_uint, handle: CUmodule) |cx| {
        for (index, function) in module(handle)?.functions.iter().take(count as usize).enumerate() {
            // SAFETY: the caller's array of that many.
            unsafe { put(found.wrapping_add(index), function.handle()) }?;
        }
        Ok(())
    }

    fn cuModuleGetGlobal_v2(
        address: *mut CUdeviceptr, bytes: *mut usize, handle: CUmodule, name: *const c_char,
    ) |cx| {
        module(handle)?;
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuModuleGetLoadingMode(mode: *mut c_uint) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(mode, EAGER) }
    }

    fn cuLibraryLoadData(
        made: *mut CUlibrary, code: *const c_void, jit_options: *const c_uint, jit_values: *const *mut c_void,
        jit_count: c_uint, options: *const c_uint, values: *const *mut c_void, count: c_uint,
    ) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, handle_of(&Library::from_image(code)?)) }
    }

    fn cuLibraryLoadFromFile(
        made: *mut CUlibrary, path: *const c_char, jit_options: *const c_uint, jit_values: *const *mut c_void,
        jit_count: c_uint, options: *const c_uint, values: *const *mut c_void, count: c_uint,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe {
            let image = read(path)?;
            put(made, handle_of(&Library::from_image(image.as_ptr().cast())?))
        }
    }

    fn cuLibraryUnload(handle: CUlibrary) |cx| {
        library(handle)?.unload();
        Ok(())
    }

    fn cuLibraryGetKernel(found: *mut CUkernel, handle: CUlibrary, name: *const c_char) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { put(found, handle_of(&library(handle)?.kernel(&text(name)?)?)) }
    }

    fn cuLibraryGetKernelCount(count: *mut c_uint, handle: CUlibrary) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(count, library(handle)?.names().len() as c_uint) }
    }

    fn cuLibraryEnumerateKernels(found: *mut CUkernel, count: c_uint, handle: CUlibrary) |cx| {
        let library = library(handle)?;
        for (index, name) in library.names().iter().take(count as usize).enumerate() {
            // SAFETY: the caller's array of that many.
            unsafe { put(found.wrapping_add(index), handle_of(&library.kernel(name)?)) }?;
        }
        Ok(())
    }

    fn cuLibraryGetModule(found: *mut CUmodule, handle: CUlibrary) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(found, handle_of(&library(handle)?.module(&cx.context()?))) }
    }

    fn cuLibraryGetGlobal(address: *mut CUdeviceptr, bytes: *mut usize, handle: CUlibrary, name: *const c_char) |cx| {
        library(handle)?;
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuLibraryGetManaged(address: *mut CUdeviceptr, bytes: *mut usize, handle: CUlibrary, name: *const c_char) |cx| {
        library(handle)?;
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuKernelGetFunction(found: *mut CUfunction, handle: CUkernel) |cx| {
        let kernel = KERNELS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(found, kernel.function(&cx.context()?)?.handle()) }
    }

    fn cuKernelGetLibrary(found: *mut CUlibrary, handle: CUkernel) |cx| {
        let kernel = KERNELS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(found, handle_of(&kernel.library)) }
    }


    fn cuModuleGetSurfRef(found: *mut *mut c_void, handle: CUmodule, name: *const c_char) |cx| {
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuModuleGetTexRef(found: *mut *mut c_void, handle: CUmodule, name: *const c_char) |cx| {
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuFuncGetModule(found: *mut CUmodule, handle: CUfunction) |cx| {
        let function = super::launch::function_of(cx, handle)?;
        let mut owner = None;
        MODULES.for_each(|module| {
            if module.functions.iter().any(|other| Arc::ptr_eq(other, &function)) {
                owner = Some(handle_of(module));
            }
        });
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(found, owner.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?) }
    }

    fn cuProfilerStart() |cx| {
        cx.context().map(|_| ())
    }

    fn cuProfilerStop() |cx| {
        cx.context().map(|_| ())
    }

}

fn module(handle: CUmodule) -> Outcome<Arc<Module>> {
    MODULES.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

fn library(handle: CUlibrary) -> Outcome<Arc<Library>> {
    LIBRARIES.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

/// # Safety
/// `name` is null or a C string.
unsafe fn text(name: *const c_char) -> Outcome<String> {
    if name.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: a C string, as the driver API demands.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

/// A file's contents and a zero.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn read(path: *const c_char) -> Outcome<Vec<u8>> {
    // SAFETY: the caller's.
    let path = unsafe { text(path) }?;
    let mut image = std::fs::read(path).map_err(|_| CUresult::CUDA_ERROR_FILE_NOT_FOUND)?;
    image.extend([0; 4]);
    Ok(image)
}
