//! Modules and libraries: loading, and finding functions in them.

use std::ffi::{c_char, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUfunction, CUkernel, CUlibrary, CUmodule, CUresult};

use crate::call::Outcome;
use crate::export::export;
use crate::handles::handle_of;
use crate::module::{KERNELS, LIBRARIES, Library, MODULES, Module};
use crate::parameters::{Count, Out, Places, Text};

/// `CU_MODULE_EAGER_LOADING`.
const EAGER: c_uint = 1;

export! {
    fn cuModuleLoad(made: Out<CUmodule>, path: Text) |cx| {
        let image = read(&path)?;
        made.set(handle_of(&Module::from_image(&cx.context()?, image.as_ptr().cast())?))
    }

    fn cuModuleLoadData(made: Out<CUmodule>, image: *const c_void) |cx| {
        made.set(handle_of(&Module::from_image(&cx.context()?, image)?))
    }

    fn cuModuleLoadDataEx(
        made: Out<CUmodule>, image: *const c_void, count: c_uint, options: *const c_uint, values: *const *mut c_void,
    ) |cx| {
        made.set(handle_of(&Module::from_image(&cx.context()?, image)?))
    }

    fn cuModuleLoadFatBinary(made: Out<CUmodule>, image: *const c_void) |cx| {
        made.set(handle_of(&Module::from_image(&cx.context()?, image)?))
    }

    fn cuModuleUnload(handle: CUmodule) |cx| {
        module(handle)?.unload();
        Ok(())
    }

    fn cuModuleGetFunction(found: Out<CUfunction>, handle: CUmodule, name: Text) |cx| {
        cx.context()?;
        found.set(module(handle)?.function(&name.get()?.to_string_lossy())?.handle())
    }

    fn cuModuleGetFunctionCount(count: Out<c_uint>, handle: CUmodule) |cx| {
        count.set(module(handle)?.functions.len() as c_uint)
    }

    fn cuModuleEnumerateFunctions(found: Places<CUfunction>, count: Count<c_uint>, handle: CUmodule) |cx| {
        found.fill(count, module(handle)?.functions.iter().map(|function| Ok(function.handle())))
    }

    fn cuModuleGetGlobal_v2(
        address: *mut CUdeviceptr, bytes: *mut usize, handle: CUmodule, name: *const c_char,
    ) |cx| {
        module(handle)?;
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuModuleGetLoadingMode(mode: Out<c_uint>) |cx| {
        mode.set(EAGER)
    }

    fn cuLibraryLoadData(
        made: Out<CUlibrary>, code: *const c_void, jit_options: *const c_uint, jit_values: *const *mut c_void,
        jit_count: c_uint, options: *const c_uint, values: *const *mut c_void, count: c_uint,
    ) |cx| {
        made.set(handle_of(&Library::from_image(code)?))
    }

    fn cuLibraryLoadFromFile(
        made: Out<CUlibrary>, path: Text, jit_options: *const c_uint, jit_values: *const *mut c_void,
        jit_count: c_uint, options: *const c_uint, values: *const *mut c_void, count: c_uint,
    ) |cx| {
        let image = read(&path)?;
        made.set(handle_of(&Library::from_image(image.as_ptr().cast())?))
    }

    fn cuLibraryUnload(handle: CUlibrary) |cx| {
        library(handle)?.unload();
        Ok(())
    }

    fn cuLibraryGetKernel(found: Out<CUkernel>, handle: CUlibrary, name: Text) |cx| {
        found.set(handle_of(&library(handle)?.kernel(&name.get()?.to_string_lossy())?))
    }

    fn cuLibraryGetKernelCount(count: Out<c_uint>, handle: CUlibrary) |cx| {
        count.set(library(handle)?.names().len() as c_uint)
    }

    fn cuLibraryEnumerateKernels(found: Places<CUkernel>, count: Count<c_uint>, handle: CUlibrary) |cx| {
        let library = library(handle)?;
        found.fill(count, library.names().iter().map(|name| Ok(handle_of(&library.kernel(name)?))))
    }

    fn cuLibraryGetModule(found: Out<CUmodule>, handle: CUlibrary) |cx| {
        found.set(handle_of(&library(handle)?.module(&cx.context()?)))
    }

    fn cuLibraryGetGlobal(address: *mut CUdeviceptr, bytes: *mut usize, handle: CUlibrary, name: *const c_char) |cx| {
        library(handle)?;
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuLibraryGetManaged(address: *mut CUdeviceptr, bytes: *mut usize, handle: CUlibrary, name: *const c_char) |cx| {
        library(handle)?;
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuKernelGetFunction(found: Out<CUfunction>, handle: CUkernel) |cx| {
        let kernel = KERNELS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        found.set(kernel.function(&cx.context()?)?.handle())
    }

    fn cuKernelGetLibrary(found: Out<CUlibrary>, handle: CUkernel) |cx| {
        let kernel = KERNELS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        found.set(handle_of(&kernel.library))
    }


    fn cuModuleGetSurfRef(found: *mut *mut c_void, handle: CUmodule, name: *const c_char) |cx| {
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuModuleGetTexRef(found: *mut *mut c_void, handle: CUmodule, name: *const c_char) |cx| {
        Err(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    fn cuFuncGetModule(found: Out<CUmodule>, handle: CUfunction) |cx| {
        let function = super::launch::function_of(cx, handle)?;
        let mut owner = None;
        MODULES.for_each(|module| {
            if module.functions.iter().any(|other| Arc::ptr_eq(other, &function)) {
                owner = Some(handle_of(module));
            }
        });
        found.set(owner.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?)
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

/// A file's contents and a zero.
fn read(path: &Text) -> Outcome<Vec<u8>> {
    let path = path.get()?.to_string_lossy().into_owned();
    let mut image = std::fs::read(path).map_err(|_| CUresult::CUDA_ERROR_FILE_NOT_FOUND)?;
    image.extend([0; 4]);
    Ok(image)
}
