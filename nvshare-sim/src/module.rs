//! Modules and libraries: of their text only entries and their parameters are looked at.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;

use crate::call::Outcome;
use crate::context::Context;
use crate::execution::builtin::Builtin;
use crate::execution::kernel::{FUNCTIONS, Function};
use crate::handles::{Registry, handle_of};
use crate::ptx::Entry;
use crate::{jit, memory};

/// Loaded modules.
pub(crate) static MODULES: Registry<Module> = Registry::new();
/// Loaded libraries.
pub(crate) static LIBRARIES: Registry<Library> = Registry::new();
/// Kernels of libraries that were asked for.
pub(crate) static KERNELS: Registry<Kernel> = Registry::new();

/// A module in a context.
pub(crate) struct Module {
    /// Where it was loaded.
    pub(crate) context: Arc<Context>,
    /// Its functions in the order of the text.
    pub(crate) functions: Vec<Arc<Function>>,
}

impl Module {
    /// The function of this name.
    pub(crate) fn function(&self, name: &str) -> Outcome<Arc<Function>> {
        let found = self.functions.iter().find(|function| function.name == name);
        found.cloned().ok_or(CUresult::CUDA_ERROR_NOT_FOUND)
    }

    /// Makes a module of these entries in `context`.
    fn load(context: &Arc<Context>, entries: &[Entry]) -> Arc<Module> {
        let function = |entry: &Entry| {
            let function = Arc::new(Function {
                name: entry.name.clone(),
                parameters: entry.parameters.clone(),
                builtin: Builtin::by_name(&entry.name),
                context: Arc::clone(context),
                dynamic_shared: AtomicI32::new(0),
            });
            FUNCTIONS.insert::<()>(Arc::clone(&function));
            function
        };
        let functions = entries.iter().map(function).collect();
        Arc::new(Module { context: Arc::clone(context), functions })
    }

    /// Loads an image into the context and keeps it.
    pub(crate) fn from_image(context: &Arc<Context>, image: *const c_void) -> Outcome<Arc<Module>> {
        crate::faults::at_call(crate::faults::Point::Module)?;
        let entries = jit::entries(image)?;
        // As on an H200: code is put in place when no kernel of the context runs.
        memory::wait_for(context)?;
        let module = Module::load(context, &entries);
        MODULES.insert::<()>(Arc::clone(&module));
        Ok(module)
    }

    /// Forgets the module and its functions, once no kernel of its context runs.
    pub(crate) fn unload(self: &Arc<Module>) {
        let _ = memory::wait_for(&self.context);
        MODULES.remove(handle_of::<_, ()>(self));
        for function in &self.functions {
            FUNCTIONS.remove(function.handle());
        }
    }
}

/// A library: code that is loaded into a context when it is used there.
pub(crate) struct Library {
    entries: Vec<Entry>,
    modules: Mutex<HashMap<u64, Arc<Module>>>,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

/// A kernel of a library, in no context.
pub(crate) struct Kernel {
    /// Where it belongs.
    pub(crate) library: Arc<Library>,
    /// Its name.
    pub(crate) name: String,
}

impl Library {
    /// Loads an image and keeps it.
    pub(crate) fn from_image(image: *const c_void) -> Outcome<Arc<Library>> {
        crate::faults::at_call(crate::faults::Point::Module)?;
        let library =
            Library { entries: jit::entries(image)?, modules: Mutex::default(), kernels: Mutex::default() };
        let library = Arc::new(library);
        LIBRARIES.insert::<()>(Arc::clone(&library));
        Ok(library)
    }

    /// The names of its kernels.
    pub(crate) fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.name.clone()).collect()
    }

    /// The module it is in this context.
    pub(crate) fn module(&self, context: &Arc<Context>) -> Arc<Module> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || {
            let module = Module::load(context, &self.entries);
            MODULES.insert::<()>(Arc::clone(&module));
            module
        };
        Arc::clone(modules.entry(context.id).or_insert_with(load))
    }

    /// The kernel of this name.
    pub(crate) fn kernel(self: &Arc<Library>, name: &str) -> Outcome<Arc<Kernel>> {
        if !self.entries.iter().any(|entry| entry.name == name) {
            return Err(CUresult::CUDA_ERROR_NOT_FOUND);
        }
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let kernel = Arc::new(Kernel { library: Arc::clone(self), name: name.to_owned() });
            KERNELS.insert::<()>(Arc::clone(&kernel));
            kernel
        };
        Ok(Arc::clone(kernels.entry(name.to_owned()).or_insert_with(make)))
    }

    /// Forgets the library, its kernels, and what it is in contexts.
    pub(crate) fn unload(self: &Arc<Library>) {
        LIBRARIES.remove(handle_of::<_, ()>(self));
        for module in
            std::mem::take(&mut *self.modules.lock().unwrap_or_else(PoisonError::into_inner)).values()
        {
            module.unload();
        }
        for kernel in
            std::mem::take(&mut *self.kernels.lock().unwrap_or_else(PoisonError::into_inner)).values()
        {
            KERNELS.remove(handle_of::<_, ()>(kernel));
        }
    }
}

impl Kernel {
    /// The function it is in this context.
    pub(crate) fn function(&self, context: &Arc<Context>) -> Outcome<Arc<Function>> {
        self.library.module(context).function(&self.name)
    }
}

/// The context is gone, and what was loaded into it.
pub(crate) fn forget(context: &Arc<Context>) {
    MODULES.retain(|module| !Arc::ptr_eq(&module.context, context));
    LIBRARIES.for_each(|library| {
        library.modules.lock().unwrap_or_else(PoisonError::into_inner).remove(&context.id);
    });
}
