//! Which of a function's variants is meant: what `cuGetProcAddress` found is the driver's choice, and our hook of it stands
//! in its place.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use super::table::{HOOKS, Hook};
use crate::driver::driver;

/// What the application shall get where the real `cuGetProcAddress` answered `address` to a question for `name`: the
/// hook whose real function is there, so that all rules about versions and flags are the driver's; else by name, where
/// the address is that of no exported variant; else the address itself, as always of a stand-in for the driver.
pub(crate) fn substitute(name: &CStr, address: *mut c_void, version: c_int, flags: u64) -> *const c_void {
    static BY_ADDRESS: OnceLock<Vec<(usize, &'static Hook)>> = OnceLock::new();
    if driver().is_stand_in() {
        return address;
    }
    let by_address = BY_ADDRESS.get_or_init(|| {
        let mut map: Vec<_> =
            HOOKS.iter().filter_map(|hook| Some((driver().entry(hook.symbol)?.addr(), hook))).collect();
        map.sort_unstable_by_key(|(real, _)| *real);
        map
    });
    if let Ok(at) = by_address.binary_search_by_key(&address.addr(), |(real, _)| *real) {
        return by_address[at].1.address;
    }
    by_name(name.to_bytes(), address, version, flags).map_or(address.cast_const(), |hook| hook.address)
}

/// The per-thread default stream flag of `cuGetProcAddress`.
const PER_THREAD_DEFAULT_STREAM: u64 = 2;

fn by_name(name: &[u8], address: *mut c_void, version: c_int, flags: u64) -> Option<&'static Hook> {
    let variants: Vec<&Hook> =
        HOOKS.iter().filter(|hook| base_name(hook.name()).as_bytes() == name).collect();
    // An address of a variant that is exported and not hooked is the driver's right answer.
    if variants.is_empty() || exported(name, address) {
        return None;
    }
    let per_thread = flags & PER_THREAD_DEFAULT_STREAM != 0
        && variants.iter().any(|hook| hook.symbol.per_thread_default());
    variants
        .into_iter()
        .filter(|hook| hook.symbol.per_thread_default() == per_thread && since(hook.name()) <= version)
        .max_by_key(|hook| since(hook.name()))
}

fn exported(name: &[u8], address: *mut c_void) -> bool {
    ["", "_v2", "_v3", "_v4", "_ptsz", "_ptds", "_v2_ptsz", "_v2_ptds", "_v3_ptsz"].into_iter().any(
        |suffix| {
            let mut full = name.to_vec();
            full.extend(suffix.as_bytes());
            full.push(0);
            driver().export(&full) == Some(address)
        },
    )
}

/// A symbol's name without what tells its variants apart.
fn base_name(symbol: &str) -> &str {
    let base = symbol.strip_suffix("_ptsz").or_else(|| symbol.strip_suffix("_ptds")).unwrap_or(symbol);
    let stem = base.trim_end_matches(|c: char| c.is_ascii_digit());
    match stem.strip_suffix("_v") {
        Some(name) if stem.len() < base.len() => name,
        _ => base,
    }
}

/// The CUDA version that brought the variant, as `cuGetProcAddress` counts; from the prototypes' type names in NVIDIA's
/// `cudaTypedefs.h`. Used only for drivers whose answers are not exported symbols.
fn since(symbol: &str) -> c_int {
    let base = symbol.strip_suffix("_ptsz").or_else(|| symbol.strip_suffix("_ptds")).unwrap_or(symbol);
    match base {
        "cuGraphAddNode_v3" | "cuGraphNodeSetParams_v2" => 13040,
        "cuMemcpyBatchAsync_v2" | "cuMemcpy3DBatchAsync_v2" | "cuCtxSynchronize_v2" => 13000,
        "cuCtxCreate_v4" => 12050,
        "cuGraphAddNode_v2" => 12030,
        "cuMemPrefetchAsync_v2" | "cuMemAdvise_v2" => 12020,
        "cuLaunchHostFunc_v2" | "cuMulticastBindAddr_v2" | "cuMulticastBindMem_v2" => 13010,
        "cuGetProcAddress_v2" | "cuGraphExecUpdate_v2" => 12000,
        "cuIpcOpenMemHandle_v2" => 11000,
        "cuTexRefSetAddress2D_v3" => 4010,
        name if name.starts_with("cuStream") && name.ends_with("_v2") && name.contains("Value") => 11070,
        "cuStreamBatchMemOp_v2" => 11070,
        "cuCtxCreate_v3" => 11040,
        "cuDevicePrimaryCtxRelease_v2" | "cuDevicePrimaryCtxReset_v2" | "cuGraphInstantiate_v2" => 11000,
        "cuStreamBeginCapture_v2" => 10010,
        "cuCtxDestroy_v2" | "cuStreamDestroy_v2" => 4000,
        name if name.ends_with("_v2") => 3020,
        _ => 2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_exported_nowhere_gets_the_variant_of_its_version_and_flags() {
        let stranger = std::ptr::without_provenance_mut(0x1234);
        let chosen =
            |name: &str, version, flags| by_name(name.as_bytes(), stranger, version, flags).map(Hook::name);
        assert_eq!(chosen("cuMemAlloc", 2000, 0), Some("cuMemAlloc"));
        assert_eq!(chosen("cuMemAlloc", 12090, 0), Some("cuMemAlloc_v2"));
        assert_eq!(chosen("cuMemcpyHtoD", 12090, 2), Some("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(chosen("cuMemPrefetchAsync", 12000, 0), Some("cuMemPrefetchAsync"));
        assert_eq!(chosen("cuMemPrefetchAsync", 12020, 2), Some("cuMemPrefetchAsync_v2_ptsz"));
        assert_eq!(chosen("cuLaunchKernel", 12090, 2), Some("cuLaunchKernel_ptsz"));
        assert_eq!(chosen("cuMemAlloc", 12090, 2), Some("cuMemAlloc_v2"));
        assert_eq!(chosen("cuDriverGetVersion", 12090, 0), None);
    }

    /// Which variant a version gets is a matter of their order, and of the boundaries between them.
    #[test]
    fn every_variant_that_is_not_the_first_of_its_name_is_as_old_as_the_headers_say() {
        let names = include_str!("../../../nvshare-sim/names.txt");
        let lines = names.lines().filter(|line| !line.starts_with('#'));
        let told: Vec<(&str, &str, c_int)> = lines
            .map(|line| {
                let mut words = line.split(' ');
                let mut next = || words.next().unwrap();
                (next(), next(), next().parse().unwrap())
            })
            .collect();
        for (symbol, base, version) in &told {
            let is_first = told.iter().filter(|(_, of, _)| of == base).all(|(_, _, other)| other >= version);
            let is_ours = |hook: &Hook| {
                hook.name() == *symbol && base_name(symbol) == *base && !hook.symbol.per_thread_default()
            };
            if !is_first && HOOKS.iter().any(is_ours) {
                assert_eq!(since(symbol), *version, "{symbol}");
            }
        }
    }

    #[test]
    fn variants_share_their_base_name() {
        for (symbol, base) in [
            ("cuMemcpyHtoD_v2_ptds", "cuMemcpyHtoD"),
            ("cuLaunchKernel_ptsz", "cuLaunchKernel"),
            ("cuCtxCreate_v4", "cuCtxCreate"),
            ("cuStreamWriteValue32_v2", "cuStreamWriteValue32"),
            ("cuMemsetD2D32", "cuMemsetD2D32"),
        ] {
            assert_eq!(base_name(symbol), base);
        }
    }
}
