//! What the whole launch hook costs over the bare call: the library preloaded, as in a client, in front of a driver that
//! does nothing.

#![expect(unsafe_code, reason = "functions of a library are called")]

use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use criterion::Criterion;

type Launch = unsafe extern "C" fn(
    *mut c_void,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    *mut c_void,
    *mut *mut c_void,
    *mut *mut c_void,
) -> i32;

/// Set once the library is preloaded, to the directory of the null driver.
const DRIVER: &str = "NVSHARE_BENCH_DRIVER";

fn main() {
    match std::env::var_os(DRIVER) {
        None => preload_and_begin_again(),
        Some(directory) => measure(Path::new(&directory)),
    }
}

fn preload_and_begin_again() {
    let program = std::env::current_exe().expect("a program knows its file");
    let shim = program.with_file_name("libnvshare.so");
    assert!(shim.exists(), "{} is missing: cargo builds it beside the benchmarks", shim.display());
    let directory = program.with_file_name("null-driver");
    std::fs::create_dir_all(&directory).expect("the build directory is writable");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/driver.c");
    let built = Command::new("cc")
        .args(["-O2", "-w", "-shared", "-fPIC", "-DUNCOUNTED", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(directory.join("libcuda.so.1"))
        .arg(source)
        .arg("-ldl")
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "a C compiler called `cc` is needed for the null driver"
    );
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env("LD_PRELOAD", shim)
        .env("NVSHARE_SOCKET", directory.join("nobody.sock"))
        .env(DRIVER, directory)
        .exec();
    panic!("cannot begin again under LD_PRELOAD: {error}");
}

fn measure(directory: &Path) {
    let library = open(&directory.join("libcuda.so.1"));
    let hooked = launch(look_up(library, "cuLaunchKernel"));
    let bare = launch(look_up(library, "bare_launch"));
    assert!(hooked as usize != bare as usize, "the library is not preloaded");
    // SAFETY: the null driver's functions take anything.
    unsafe {
        let init: unsafe extern "C" fn(u32) -> i32 = std::mem::transmute(look_up(library, "cuInit"));
        assert_eq!(init(0), 0);
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("launch");
    for (name, function) in [("bare", bare), ("hooked", hooked)] {
        let function = black_box(function);
        let null = std::ptr::null_mut();
        group.bench_function(name, |bencher| {
            // SAFETY: as above.
            bencher.iter(|| unsafe {
                function(null, 1, 1, 1, 1, 1, 1, 0, black_box(null), null.cast(), null.cast())
            });
        });
    }
    group.finish();
    criterion.final_summary();
}

fn open(path: &Path) -> *mut c_void {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero in a path");
    // SAFETY: a library of ours, which does nothing when it is loaded.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "cannot load {path:?}");
    library
}

fn look_up(library: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).expect("no zero in a name");
    // SAFETY: an open library and a C string.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!found.is_null(), "the null driver has no {name:?}");
    found
}

fn launch(address: *mut c_void) -> Launch {
    // SAFETY: the address of a function that takes cuLaunchKernel's arguments, or none at all.
    unsafe { std::mem::transmute(address) }
}
