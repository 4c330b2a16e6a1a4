//! An ordinary CUDA driver API program that fills, computes over and verifies N bytes.

fn main() {}
