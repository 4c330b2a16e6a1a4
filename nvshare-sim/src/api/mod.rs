//! The exported functions, a file per family, and the table of all of them.

mod errors;
mod initialization;
mod proc_address;
mod stubs;

use crate::export::Export;

/// All exports, a table per file.
pub(crate) static TABLES: &[&[Export]] =
    &[errors::EXPORTS, initialization::EXPORTS, proc_address::EXPORTS, stubs::EXPORTS];
