//! The client programs of these tests: the test binary runs itself with the name of one.

mod contexts;
mod frees;
mod mapped;
mod pools;
mod random;
mod scripted;

use std::io::Write as _;

use cudarc::driver::sys;

use self::contexts::{contexts, one_device_leaves, two_devices};
use self::frees::{capture_while_swapped, freed_during_a_capture, freed_in_order, freed_while_written};
use self::random::{random, small};
use self::scripted::scripted;
use crate::gpu::cu;

/// Runs the client program of that name.
pub(crate) fn run(role: &str) {
    match role {
        "random" => random(number("SEED"), number("OPERATIONS")),
        "mapped" => mapped::random(number("SEED"), number("OPERATIONS")),
        "segments" => mapped::segments(),
        "mapped contexts" => mapped::contexts(),
        "pools" => pools::random(number("SEED"), number("OPERATIONS")),
        "pool contexts" => pools::contexts(),
        "pool answers" => pools::answers(),
        "pool too much" => pools::too_much(),
        "pool behind" => pools::behind_another_context(),
        "pool green" => pools::green(false),
        "plain green" => pools::green(true),
        "small" => small(number("COUNT")),
        "freed" => freed_while_written(),
        "ordered" => freed_in_order(),
        "capture" => capture_while_swapped(),
        "quarantine" => freed_during_a_capture(),
        "contexts" => contexts(),
        "devices" => two_devices(),
        "leaving" => one_device_leaves(),
        "scripted" => scripted(),
        "across" => crate::across::role(),
        "refused" => crate::ends::refused(),
        "references" => crate::ends::references(),
        "under gone" => crate::ends::under_gone(),
        "for good" => crate::ends::for_good(),
        "jammed" => crate::waits::jammed(),
        "missing" => crate::waits::missing(),
        _ => panic!("no client program `{role}`"),
    }
}

fn number(name: &str) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name} is missing"))
}

/// The calling thread's context, as its number.
pub(crate) fn current() -> usize {
    let mut context = std::ptr::null_mut();
    cu!(cuCtxGetCurrent(&raw mut context));
    context.expose_provenance()
}

/// Makes that context the calling thread's.
pub(crate) fn make_current(context: usize) {
    cu!(cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)));
}

/// Waits for the word of the test that leads this program.
pub(crate) fn await_end() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a word");
    assert_eq!(line.trim(), "end");
}

pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}
