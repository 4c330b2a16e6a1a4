//! What the node agent decides: values in, values out. Nothing here opens a file, starts a thread or asks for the time;
//! all of it is tested in virtual time, and `Cargo.toml` keeps it so.
//!
//! The [`conductor`] hears what happens, books it in the [`ledger`], which knows what everybody holds, and asks the
//! [`policy`] who runs and whose memory moves. [`snapshot`] is what others may see of it. The rest are words of these:
//! [`observation`] (what uprobes saw), [`reading`] (what NVML said), [`order`] and [`change`] (what people want),
//! [`settings`], [`process`], [`moment`], [`arena`], [`decision`]; [`value`] reads and writes sizes and times as people do.
//!
//! A module may use those below it, never one above; of two on one floor the one that is named first is below. Within a
//! folder anything goes. `tests/floors.rs` compares this table with every path in the sources, `tests/pure.rs` looks at what
//! comes from outside.
//!
//! | floor | modules | what lives there |
//! | --- | --- | --- |
//! | 5 | `conductor` | what happens is heard and booked; what was decided is said |
//! | 4 | `snapshot` | what others may see |
//! | 3 | `policy` | who runs and whose memory moves |
//! | 2 | `ledger` | what everybody holds and wants |
//! | 1 | `value`, `change`, `settings`, `moment`, `process`, `order`, `reading`, `observation`, `arena`, `decision` | words |

#![forbid(unsafe_code)]

pub mod arena;
pub mod change;
pub mod conductor;
pub mod decision;
pub mod ledger;
pub mod moment;
pub mod observation;
pub mod order;
pub mod policy;
pub mod process;
pub mod reading;
pub mod settings;
pub mod snapshot;
pub mod value;
