//! What the library exports, how its functions begin, and how they are looked up.

#![expect(unsafe_code, reason = "the code of functions, texts of the driver's, a fork")]

mod client;

use std::collections::HashMap;
use std::ffi::c_void;

use client::DRIVER;

const NAMES: &str = include_str!("../names.txt");

fn names() -> impl Iterator<Item = (&'static str, &'static str, i32)> {
    NAMES.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut parts = line.split(' ');
        let mut next = || parts.next().expect("three parts");
        (next(), next(), next().parse().expect("a version"))
    })
}

fn look_up(base: &str, version: i32, flags: u64) -> (u32, *mut c_void, u32) {
    let (mut address, mut status) = (std::ptr::null_mut::<c_void>(), 9_u32);
    let base = format!("{base}\0");
    let result = call!(cuGetProcAddress_v2(base.as_ptr(), &raw mut address, version, flags, &raw mut status));
    (result, address, status)
}

#[test]
fn every_function_of_the_driver_api_is_exported_and_begins_like_nvidias() {
    for (symbol, ..) in names() {
        let address = DRIVER.address(symbol).unwrap_or_else(|| panic!("{symbol} is not exported"));
        // SAFETY: code of the library, longer than this.
        let code = unsafe { address.cast::<[u8; 17]>().read_unaligned() };
        assert_eq!(code[..2], [0x81, 0x3d], "{symbol}: cmp dword ptr [rip + ..], imm32");
        assert_eq!(code[6..10], 0x321c_ba00_u32.to_le_bytes(), "{symbol}");
        // A breakpoint, where an agent on this machine observes the library.
        let jump = if code[10] == 0xcc { 0x74 } else { code[10] };
        assert_eq!((jump, code[12]), (0x74, 0xe9), "{symbol}: je short, jmp");
    }
}

#[test]
fn no_two_functions_share_an_address() {
    let mut seen = HashMap::new();
    let symbols: std::collections::BTreeSet<_> = names().map(|(symbol, ..)| symbol).collect();
    for symbol in symbols {
        if let Some(other) = seen.insert(DRIVER.address(symbol), symbol) {
            panic!("{symbol} and {other} are one function");
        }
    }
}

#[test]
fn a_name_is_looked_up_by_version_and_default_stream_even_before_initialisation() {
    for (base, version, flags, symbol) in [
        ("cuMemAlloc", 3020, 0, "cuMemAlloc_v2"),
        ("cuMemAlloc", 12000, 2, "cuMemAlloc_v2"),
        ("cuMemAlloc", 2000, 0, "cuMemAlloc"),
        ("cuMemcpyHtoD", 12000, 0, "cuMemcpyHtoD_v2"),
        ("cuMemcpyHtoD", 12000, 2, "cuMemcpyHtoD_v2_ptds"),
        ("cuLaunchKernel", 12090, 1, "cuLaunchKernel"),
        ("cuLaunchKernel", 12090, 2, "cuLaunchKernel_ptsz"),
        ("cuCtxCreate", 3020, 0, "cuCtxCreate_v2"),
        ("cuCtxCreate", 12090, 0, "cuCtxCreate_v4"),
        ("cuMemPrefetchAsync", 12020, 2, "cuMemPrefetchAsync_v2_ptsz"),
        ("cuStreamGetCaptureInfo", 11030, 0, "cuStreamGetCaptureInfo_v2"),
        ("cuGraphInstantiate", 12000, 0, "cuGraphInstantiateWithFlags"),
    ] {
        let (result, address, status) = look_up(base, version, flags);
        assert_eq!((result, status), (0, 0), "{base}");
        assert_eq!(Some(address), DRIVER.address(symbol), "{base} {version} {flags}");
    }
}

#[test]
fn a_name_that_is_unknown_or_newer_is_said_to_be_so() {
    assert_eq!(look_up("cuMemFly", 12000, 0), (0, std::ptr::null_mut(), 1));
    assert_eq!(look_up("cuMemAllocAsync", 3020, 0), (0, std::ptr::null_mut(), 2));
    assert_eq!(look_up("cuMemAlloc", 12000, 3).0, 1);
    assert_eq!(look_up("", 12000, 0).0, 1);
}

#[test]
fn what_is_not_simulated_is_not_supported_and_said_once() {
    if client::is_alone() {
        ok!(cuInit(0_u32));
        assert_eq!(call!(cuTexRefDestroy(0_u64)), 801);
        assert_eq!(call!(cuTexRefDestroy(0_u64)), 801);
        return;
    }
    let said = client::alone("what_is_not_simulated_is_not_supported_and_said_once", &[]);
    assert_eq!(said.matches("cuTexRefDestroy is not simulated").count(), 1, "{said}");
}

#[test]
fn errors_have_names() {
    let mut name: *const std::ffi::c_char = std::ptr::null();
    ok!(cuGetErrorName(700_u32, &raw mut name));
    // SAFETY: a C string of the library's.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(name) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(call!(cuGetErrorName(12345_u32, &raw mut name)), 1);
    assert!(name.is_null());
}

#[test]
fn nothing_works_before_initialisation_and_nothing_in_a_forked_child() {
    if !client::is_alone() {
        client::alone("nothing_works_before_initialisation_and_nothing_in_a_forked_child", &[]);
        return;
    }
    let mut count = 0;
    assert_eq!(call!(cuDeviceGetCount(&raw mut count)), 3);
    ok!(cuInit(0_u32));
    ok!(cuDeviceGetCount(&raw mut count));
    // SAFETY: the child only makes calls that take no lock, and leaves at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let wrong = call!(cuDeviceGetCount(&raw mut count)) != 3 || call!(cuInit(0_u32)) != 3;
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(wrong)) };
    }
    let mut status = 0;
    // SAFETY: the child is ours and was not waited for.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child was answered");
}
