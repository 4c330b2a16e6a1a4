//! Every driver function that the shim knows, by its symbol, and the real one of each as a method of [`Driver`].

#![expect(unsafe_code, reason = "the loader's and the driver's functions are found and called")]
#![allow(non_snake_case, reason = "functions and arguments have the header's names")]
#![allow(clippy::too_many_arguments, reason = "as many as the driver's functions have")]
#![allow(clippy::wildcard_imports, reason = "the signatures need half of the header's types")]

use std::ffi::{CStr, c_char, c_void};

use nvshare_common::probe::{Call, PROBES};

use super::functions::functions;
use super::{Driver, waits};
use crate::cuda::sys::*;
use crate::cuda::{CEnum, CUresult, Location};

/// Under which heading calls of `name` are counted, if any: both sides take it from the table of probes. Calls that are only
/// observed have no counter.
pub(crate) const fn probed(name: &str) -> Option<Call> {
    let mut at = 0;
    while at < PROBES.len() {
        if same(PROBES[at].symbol.as_bytes(), name.as_bytes()) {
            let call = PROBES[at].call;
            return if (call as usize) < Call::COMPARED { Some(call) } else { None };
        }
        at += 1;
    }
    None
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

impl Symbol {
    /// The exported name.
    pub const fn name(self) -> &'static str {
        let name = self.terminated();
        name.split_at(name.len() - 1).0
    }

    /// The same for C.
    pub(crate) const fn c_name(self) -> &'static CStr {
        match CStr::from_bytes_with_nul(self.terminated().as_bytes()) {
            Ok(name) => name,
            Err(_) => c"",
        }
    }

    /// One text and where each name begins in it, instead of a table of pointers: these the loader would have to put right in
    /// every process that the library is loaded into, most of which never ask for a name.
    const fn terminated(self) -> &'static str {
        static STARTS: [u16; Symbol::ALL.len() + 1] = starts();
        let (from, to) = (STARTS[self as usize] as usize, STARTS[self as usize + 1] as usize);
        NAMES.split_at(to).0.split_at(from).1
    }

    /// Whether the null stream of this variant is the calling thread's own.
    pub(crate) const fn per_thread_default(self) -> bool {
        let name = self.name().as_bytes();
        let n = name.len();
        n > 5
            && name[n - 5] == b'_'
            && name[n - 4] == b'p'
            && name[n - 3] == b't'
            && matches!(name[n - 2], b's' | b'd')
    }

    /// Submits a kernel or a graph and nothing else. Some programs do little but that, and it holds no cancellation point
    /// (an assumption: docs/driver-assumptions.md), so they are spared what keeps a thread from being cancelled: 27 ns.
    pub(crate) const fn launches(self) -> bool {
        use Symbol as S;
        matches!(
            self,
            S::cuLaunchKernel
                | S::cuLaunchKernel_ptsz
                | S::cuLaunchKernelEx
                | S::cuLaunchKernelEx_ptsz
                | S::cuGraphLaunch
                | S::cuGraphLaunch_ptsz
        )
    }
}

/// Where each name begins in [`NAMES`], and where the last one ends.
#[expect(clippy::cast_possible_truncation, reason = "names of some 400 functions; more would not compile")]
const fn starts() -> [u16; Symbol::ALL.len() + 1] {
    assert!(NAMES.len() <= u16::MAX as usize);
    let mut starts = [0; Symbol::ALL.len() + 1];
    let (names, mut number, mut at) = (NAMES.as_bytes(), 0, 0);
    while at < names.len() {
        at += 1;
        if names[at - 1] == 0 {
            number += 1;
            starts[number] = at as u16;
        }
    }
    starts
}

macro_rules! entry {
    ($name:ident ($($argument:ident: $type:ty),*)) => {
        /// The real function of that name.
        ///
        /// # Safety
        /// As for the driver's function.
        #[inline]
        pub unsafe fn $name(&self $(, $argument: $type)*) -> CUresult {
            waits::check(Symbol::$name);
            // SAFETY: the caller's promise is the function's own.
            unsafe { real!(self $name counters::count ($($argument: $type),*)) }
        }
    };
}

/// The call of the real function, counted by `$count` before it is made where the function is probed.
macro_rules! real {
    ($driver:ident $name:ident counters::$count:ident ($($argument:ident: $type:ty),*)) => {{
        const CALL: Option<nvshare_common::probe::Call> = $crate::driver::probed(stringify!($name));
        match $driver.entry($crate::driver::Symbol::$name) {
            None => $crate::driver::Driver::missing($crate::driver::Symbol::$name),
            Some(entry) => {
                if let Some(call) = CALL {
                    $crate::counters::$count(call);
                }
                // The driver exports this symbol with the signature that the table gives.
                let entry: unsafe extern "C" fn($($type),*) -> $crate::cuda::CUresult = std::mem::transmute(entry);
                entry($($argument),*)
            }
        }
    }};
}
pub(crate) use real;

macro_rules! symbols {
    (
        hooked { $([$($name:ident)+] $arguments:tt => $family:ident::$hook:ident $given:tt;)* }
        bare { $($bare:ident $bare_arguments:tt;)* }
    ) => {
        /// Every driver function that the shim knows.
        #[expect(non_camel_case_types, missing_docs, reason = "the driver's names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Symbol { $($($name,)+)* $($bare,)* }

        impl Symbol {
            pub(crate) const ALL: &[Symbol] = &[$($(Symbol::$name,)+)* $(Symbol::$bare,)*];
        }

        /// All names in the order of their symbols, each with a zero after it.
        static NAMES: &str = concat!($($(stringify!($name), "\0",)+)* $(stringify!($bare), "\0",)*);

        impl Driver {
            $($(entry!($name $arguments);)+)*
            $(entry!($bare $bare_arguments);)*
        }
    };
}

functions!(symbols);
