//! `cuGetProcAddress`: the newest variant of a name that a version allows, of the default stream that the flags ask for.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::LazyLock;

use cudarc::driver::sys::{CUdriverProcAddressQueryResult as Query, CUresult};

use crate::call::Outcome;
use crate::export::{NAMES, export};
use crate::init::DRIVER_VERSION;
use crate::parameters::{Maybe, Out, Text};

const LEGACY_STREAM: u64 = 1;
const PER_THREAD_DEFAULT_STREAM: u64 = 2;

export! {
    @early fn cuGetProcAddress(symbol: Text, function: Out<*mut c_void>, version: c_int, flags: u64) |cx| {
        answer(&symbol, function, version, flags, &Maybe::NONE)
    }

    @early fn cuGetProcAddress_v2(
        symbol: Text, function: Out<*mut c_void>, version: c_int, flags: u64, status: Maybe<Query>,
    ) |cx| {
        answer(&symbol, function, version, flags, &status)
    }
}

/// What an address is looked up by.
struct Variant {
    version: u32,
    per_thread: bool,
    address: usize,
}

static VARIANTS: LazyLock<HashMap<&'static str, Vec<Variant>>> = LazyLock::new(|| {
    let exports = super::TABLES.iter().flat_map(|table| table.iter()).flat_map(|export| export.iter());
    let addresses: HashMap<_, _> = exports.map(|export| (export.name, export.address as usize)).collect();
    let mut variants: HashMap<_, Vec<_>> = HashMap::new();
    for name in NAMES {
        let per_thread = name.symbol.ends_with("_ptsz") || name.symbol.ends_with("_ptds");
        let address = addresses[name.symbol];
        variants.entry(name.base).or_default().push(Variant { version: name.version, per_thread, address });
    }
    variants
});

/// Where `base` is for a program made for `version`.
fn find(base: &str, version: u32, per_thread: bool) -> Result<usize, Query> {
    let variants = VARIANTS.get(base).ok_or(Query::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND)?;
    let newest = |twin: bool| {
        variants
            .iter()
            .filter(|variant| {
                variant.per_thread == twin && variant.version <= version.min(DRIVER_VERSION as u32)
            })
            .max_by_key(|variant| variant.version)
    };
    let found = if per_thread { newest(true).or_else(|| newest(false)) } else { newest(false) };
    found.map(|variant| variant.address).ok_or(Query::CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT)
}

fn answer(
    symbol: &Text,
    function: Out<*mut c_void>,
    version: c_int,
    flags: u64,
    status: &Maybe<Query>,
) -> Outcome {
    let both = LEGACY_STREAM | PER_THREAD_DEFAULT_STREAM;
    let name = symbol.get()?;
    if function.is_null() || version < 2000 || flags & !both != 0 || flags == both {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let name = name.to_str().map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if name.is_empty() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let found = find(name, version as u32, flags & PER_THREAD_DEFAULT_STREAM != 0);
    function.set(found.unwrap_or(0) as *mut c_void)?;
    status.set(found.err().unwrap_or(Query::CU_GET_PROC_ADDRESS_SUCCESS));
    // Version 1 of the function has only its result to say so; version 2 succeeds and says it in `status`.
    if found.is_err() && status.is_null() {
        return Err(CUresult::CUDA_ERROR_NOT_FOUND);
    }
    Ok(())
}
