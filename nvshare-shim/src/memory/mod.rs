//! What the process holds, as plain data: nothing here calls the driver or knows a device.
//!
//! - [`map`]: every allocation by address; [`space`]: spans, extents and accounts of one device; [`extent`]: one extent.
//! - [`ranges`]: free pieces of slabs, and blocks of arenas. [`pool`]: one pool of stream-ordered memory.
//! - [`virtuals`]: the handles and mappings of who maps memory by itself.
//! - [`arrays`]: arrays whose memory the engine moves.
//! - [`held`], [`physical`]: how long memory lives that passes by the engine.

pub mod arrays;
pub mod extent;
pub mod held;
pub mod map;
pub mod opened;
pub mod physical;
pub mod pool;
pub mod ranges;
pub mod space;
pub mod virtuals;
