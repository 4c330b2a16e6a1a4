//! cargo xtask: set up, build, run, test, bench, ci.

fn main() {}
