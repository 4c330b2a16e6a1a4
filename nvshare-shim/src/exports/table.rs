//! What the application calls: an export for each interposed symbol, and the table of them.

#![expect(unsafe_code, reason = "exports have the driver's names and its contract")]
#![allow(non_snake_case, reason = "functions and arguments have the header's names")]
#![allow(clippy::too_many_arguments, reason = "as many as the driver's functions have")]
#![allow(clippy::wildcard_imports, reason = "the signatures need half of the header's types")]

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use super::lookup;
use crate::cuda::sys::*;
use crate::cuda::{CEnum, CUresult, Location};
use crate::driver::{Symbol, driver, functions, real};
use crate::hooks::{
    self, arrays, batches, bound, contexts, copies, ipc, memory, memsets, nodes, plain, pools, questions,
    room, size, streams, unswappable, virtuals, waiting, work,
};

/// One interposed symbol.
pub(crate) struct Hook {
    /// Its place in the driver's table.
    pub(crate) symbol: Symbol,
    /// Our function.
    pub(crate) address: *const c_void,
}

impl Hook {
    /// Its exported name.
    pub(crate) const fn name(&self) -> &'static str {
        self.symbol.name()
    }
}

// SAFETY: the pointer is the address of a function, which is the same for all threads and never written to.
unsafe impl Sync for Hook {}

macro_rules! export {
    ($name:ident ($($argument:ident: $type:ty),*) $family:ident $hook:ident ($($given:ident),*)) => {
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(super) unsafe extern "C" fn $name($($argument: $type),*) -> CUresult {
            hooks::guarded(
                Symbol::$name,
                move || {
                    let driver = driver();
                    // SAFETY: the application called this very function with these arguments.
                    unsafe { real!(driver $name counters::count_hooked ($($argument: $type),*)) }
                },
                // SAFETY: the same.
                move |bare| unsafe { $family::$hook(bare $(, $given)*) },
            )
        }
    };
}

macro_rules! exports {
    (
        hooked { $([$($name:ident)+] $arguments:tt => $family:ident::$hook:ident $given:tt;)* }
        bare { $($bare:ident $bare_arguments:tt;)* }
    ) => {
        /// Every interposed symbol.
        pub(crate) static HOOKS: &[Hook] = &[
            $($(Hook { symbol: Symbol::$name, address: exported::$name as *const c_void },)+)*
        ];

        /// What the application calls.
        mod exported {
            use super::*;
            $($(export!($name $arguments $family $hook $given);)+)*
        }
    };
}

functions!(exports);

/// The hook of that name.
pub(crate) fn hook_named(name: &[u8]) -> Option<&'static Hook> {
    static ORDER: OnceLock<Vec<&'static Hook>> = OnceLock::new();
    let order = ORDER.get_or_init(|| {
        let mut order: Vec<_> = HOOKS.iter().collect();
        order.sort_unstable_by_key(|hook| hook.name());
        order
    });
    order.binary_search_by_key(&name, |hook| hook.name().as_bytes()).ok().map(|at| order[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_found_by_their_whole_name() {
        assert_eq!(hook_named(b"cuMemAlloc_v2").map(|hook| hook.symbol), Some(Symbol::cuMemAlloc_v2));
        assert!(hook_named(b"cuMemAlloc_v").is_none());
        assert!(hook_named(b"cuDriverGetVersion").is_none());
    }
}
