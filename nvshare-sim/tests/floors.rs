//! The library is built in floors, by the table at the head of `src/lib.rs`.

#[test]
fn no_module_uses_one_above_it() {
    nvshare_floors::check(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
}
