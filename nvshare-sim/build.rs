//! Gives the library its soname, and makes `CUDA_ERROR_NOT_SUPPORTED` stubs of the driver API's functions that `src/api`
//! does not define, and the table `cuGetProcAddress` answers from.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // Stream threads run its code: it stays when a program closes it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=names.txt");
    println!("cargo:rerun-if-changed=src/api");

    let mut defined = BTreeSet::new();
    collect(Path::new("src/api"), &mut defined);
    let names = fs::read_to_string("names.txt").expect("names.txt");
    // A name that is misspelled would leave the right one's stub in its place.
    let listed = |name: &String| names.lines().any(|line| line.split(' ').next() == Some(name));
    let unknown: Vec<&String> = defined.iter().filter(|name| !listed(name)).collect();
    assert!(
        unknown.is_empty(),
        "{unknown:?} of src/api: no such function in names.txt (a spelling, or newer than the list?)"
    );
    let mut table = String::new();
    let mut stubs = String::from("stubs! {\n");
    for line in names.lines().filter(|line| !line.starts_with('#')) {
        let [symbol, base, version] =
            line.split(' ').collect::<Vec<_>>().try_into().expect("symbol, name and version in names.txt");
        writeln!(table, "    Name {{ symbol: {symbol:?}, base: {base:?}, version: {version} }},").unwrap();
        if defined.insert(symbol.to_owned()) {
            writeln!(stubs, "    {symbol}").unwrap();
        }
    }
    stubs.push_str("}\n");
    let out = env::var("OUT_DIR").expect("OUT_DIR");
    fs::write(Path::new(&out).join("stubs.rs"), stubs).expect("stubs.rs");
    fs::write(Path::new(&out).join("names.rs"), format!("&[\n{table}]\n")).expect("names.rs");
}

/// The names that `export!` blocks define: `fn cuName(` and the twin of `fn cuName / cuName_ptsz (`.
fn collect(directory: &Path, defined: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("src/api") {
        let path = entry.expect("a file of src/api").path();
        if path.is_dir() {
            collect(&path, defined);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        for line in text.lines() {
            let Some((_, rest)) = line.split_once("fn cu") else { continue };
            let head = rest.split('(').next().unwrap_or_default();
            let mut parts = head.split('/').map(str::trim);
            if let Some(name) = parts.next() {
                defined.insert(format!("cu{name}"));
            }
            defined.extend(parts.map(str::to_owned));
        }
    }
}
