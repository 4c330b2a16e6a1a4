//! Allocations: addresses that never change, and what is behind them.
//!
//! - [`allocate`](mod@allocate), [`mod@free`]; [`mod@back`]: putting memory behind an extent, and taking a span apart.
//! - [`describe`](mod@describe): what is known of an address; [`owner`]: whose it is. [`contexts`]: what a context's end takes with it.
//! - [`promise`]: what may be promised; [`room`]: what must stay free where there is no agent.
//! - [`virtuals`]: physical memory for who maps it himself.
//! - [`mod@arrays`]: arrays, which have no address.
//! - [`shared`], [`opened`]: memory that processes share by CUDA IPC.
//! - [`stream_ordered`](mod@stream_ordered) has the pools.
//! - [`unswappable`]: the accounts of what cannot be moved; [`pools`]: the driver's own pools, by its figures.
//!
//! No lock is held during a driver call.

mod allocate;
pub mod arrays;
pub mod back;
mod contexts;
mod describe;
pub mod free;
pub mod opened;
pub mod owner;
pub mod pools;
pub mod promise;
pub mod room;
pub mod shared;
pub mod stream_ordered;
pub mod unswappable;
pub mod virtuals;

pub use self::allocate::{SMALL, allocate};
pub use self::contexts::{context_ended, green_context_ended, on_peer_access};
pub use self::describe::{Described, describe, find, info, is_allocation, set_sync};
pub use self::free::{free, free_in_order};
pub use self::promise::exceeds_limit;
pub use self::unswappable::stays;
