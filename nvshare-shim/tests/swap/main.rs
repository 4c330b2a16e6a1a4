//! The engine on a simulated card, with forced swaps and with a scripted agent. The clients are this binary itself.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

mod across;
mod agent;
mod alone;
mod arenas;
mod drift;
mod driver_memory;
mod ends;
mod forced;
mod gpu;
mod led;
mod limits;
mod mapped;
mod measures;
mod pools;
mod roles;
mod scripted;
mod users;
mod waits;

use nvshare_testbed::{Client, ClientCommand, Node, NodeBuilder};

const MIB: u64 = 1 << 20;

/// Not a test: the client program, when one of the tests below starts it.
#[test]
fn role() {
    if let Ok(role) = std::env::var("NVSHARE_TEST_ROLE") {
        roles::run(&role);
    }
}

/// With `NVSHARE_TEST_REAL=N` the tests run on the machine's own GPUs, of which there are N (those that need a simulated
/// fault do not).
fn builder() -> NodeBuilder {
    if is_real() { Node::builder().real() } else { Node::builder() }
}

fn is_real() -> bool {
    std::env::var_os("NVSHARE_TEST_REAL").is_some()
}

/// A node with two cards, if there is one.
fn two_cards() -> Option<Node> {
    if std::env::var("NVSHARE_TEST_REAL").is_ok_and(|cards| cards == "1") {
        return None;
    }
    Some(builder().env("NVSHARE_SIM_CARDS", "2").env("NVSHARE_SIM_CARD_BYTES", "64M").build())
}

fn node() -> Node {
    builder()
        .env("NVSHARE_SIM_CARD_BYTES", "256M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "4000000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .build()
}

fn client(node: &Node, role: &str) -> ClientCommand {
    let mut command = node.client(std::env::current_exe().unwrap()).with_shim();
    command
        .args(["role", "--exact", "--nocapture"])
        .env("NVSHARE_TEST_ROLE", role)
        // A kernel that is loaded by its first launch waits, on a GPU, for a kernel that waits for what comes after.
        .env("CUDA_MODULE_LOADING", "EAGER")
        .env("NVSHARE_LOG", "info");
    command
}

fn no_violations(node: &Node) {
    assert_eq!(node.violations(), Vec::<String>::new());
}

fn run(node: &Node, mut command: ClientCommand) {
    let status = Client::start(&mut command).end();
    assert!(status.success(), "the client ended with {status}");
    no_violations(node);
}
