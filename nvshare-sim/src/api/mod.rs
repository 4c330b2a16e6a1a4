//! The exported functions, a file per family, and the table of all of them.

mod any_node;
mod array;
mod array_copy;
mod binding;
mod capture;
mod context;
mod copy;
mod described;
mod device;
mod errors;
mod event;
mod function;
mod graph;
mod graph_memory;
mod green;
mod host;
mod initialization;
mod ipc;
mod launch;
mod link;
mod managed;
mod memory;
mod memset;
mod module;
mod node;
mod pointer;
mod pool;
mod proc_address;
pub(crate) mod stream;
mod stubs;
mod texture;
mod tiles;
mod value;
pub(crate) mod vmm;

use crate::export::Export;

/// All exports, a table per file.
pub(crate) static TABLES: &[&[&[Export]]] = &[
    any_node::EXPORTS,
    array::EXPORTS,
    array_copy::EXPORTS,
    binding::EXPORTS,
    capture::EXPORTS,
    context::EXPORTS,
    copy::EXPORTS,
    device::EXPORTS,
    errors::EXPORTS,
    event::EXPORTS,
    function::EXPORTS,
    graph::EXPORTS,
    graph_memory::EXPORTS,
    green::EXPORTS,
    host::EXPORTS,
    initialization::EXPORTS,
    ipc::EXPORTS,
    launch::EXPORTS,
    link::EXPORTS,
    managed::EXPORTS,
    memory::EXPORTS,
    memset::EXPORTS,
    module::EXPORTS,
    node::EXPORTS,
    pointer::EXPORTS,
    pool::EXPORTS,
    proc_address::EXPORTS,
    stream::EXPORTS,
    stubs::EXPORTS,
    texture::EXPORTS,
    tiles::EXPORTS,
    value::EXPORTS,
    vmm::EXPORTS,
];

/// Whether a fault on demand can strike a call of this function.
fn can_fail(name: &str) -> bool {
    TABLES.iter().copied().flatten().copied().flatten().any(|export| export.name == name && !export.early)
}
