//! What programs find instead of the driver's functions.
//!
//! - [`table`]: the exports, and the table of them; `pass_through`: what is not hooked, and why not.
//! - [`dlsym`], [`dlopen`]: look-ups by the C library, answered with ours; `dl`: these functions themselves. [`lookup`], [`variants`]:
//!   by the driver, with `cuGetProcAddress`.
//! - [`needed`], `pointers`, `relocations`, `weak`: what a library needs, and what the loader has bound to us.

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod dl;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod dl;
mod dlopen;
mod dlsym;
pub(crate) mod lookup;
mod needed;
#[cfg(test)]
mod pass_through;
// A test binary has no exports that anything could be bound to.
#[cfg(not(test))]
mod pointers;
#[cfg(not(test))]
mod relocations;
mod table;
mod variants;
#[cfg(not(test))]
mod weak;
