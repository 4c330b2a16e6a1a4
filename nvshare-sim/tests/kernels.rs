//! Kernels and what they are launched from: functions, libraries, and the one that computes fingerprints.

mod client;

use client::{Context, PTX};

#[test]
fn launches_are_checked_as_the_driver_checks_them() {
    let context = Context::new();
    let function = context.function("nvshare_spin");
    let nanoseconds = 0_u64;
    let parameters = [&raw const nanoseconds];
    let launch = |grid: u32, block: u32, shared: u32, parameters: *const *const u64| {
        client::launch_as(function, [grid, block, shared], 0, parameters, std::ptr::null())
    };
    assert_eq!(launch(1, 1, 0, parameters.as_ptr()), 0);
    assert_eq!(launch(0, 1, 0, parameters.as_ptr()), 1);
    assert_eq!(launch(1, 1025, 0, parameters.as_ptr()), 1);
    assert_eq!(launch(1, 1, 1 << 20, parameters.as_ptr()), 1);
    assert_eq!(launch(1, 1, 0, std::ptr::null()), 1);
    // The parameters can come in one buffer.
    let bytes = 8_usize;
    let extra = [1, &raw const nanoseconds as u64, 2, &raw const bytes as u64, 0];
    assert_eq!(client::launch_as(function, [1, 1, 0], 0, std::ptr::null(), extra.as_ptr()), 0);
    assert_eq!(context.launch(0, "somebody_elses", &[1, 2]), 801);
    let mut missing = 0_u64;
    assert_eq!(call!(cuModuleGetFunction(&raw mut missing, context.module, c"nothing".as_ptr())), 500);
    let (mut offset, mut size) = (0_usize, 0_usize);
    let other = context.function("somebody_elses");
    ok!(cuFuncGetParamInfo(other, 1_usize, &raw mut offset, &raw mut size));
    assert_eq!((offset, size), (8, 4));
    assert_eq!(call!(cuFuncGetParamInfo(other, 2_usize, &raw mut offset, &raw mut size)), 1);
}

#[test]
fn libraries_are_code_for_every_context() {
    let context = Context::new();
    let (mut library, mut kernel, mut function) = (0_u64, 0_u64, 0_u64);
    ok!(cuLibraryLoadData(&raw mut library, PTX.as_ptr(), 0_u64, 0_u64, 0_u32, 0_u64, 0_u64, 0_u32));
    ok!(cuLibraryGetKernel(&raw mut kernel, library, c"nvshare_store".as_ptr()));
    ok!(cuKernelGetFunction(&raw mut function, kernel));
    let device = context.device(4096);
    // A kernel can stand where a function does.
    for launched in [function, kernel] {
        assert_eq!(client::launch(launched, 0, &[device, 1, 77]), 0);
    }
    let mut found = 0_u64;
    ok!(cuMemcpyDtoH_v2(&raw mut found, device, 8_usize));
    assert_eq!(found, 77);
    ok!(cuLibraryUnload(library));
    assert_eq!(call!(cuKernelGetFunction(&raw mut function, kernel)), 400);
}

#[test]
fn a_destroyed_context_ends_even_a_kernel_that_never_would() {
    let context = Context::new();
    let mut inner = 0_u64;
    let flag = context.pinned(4096);
    flag[0] = 0;
    ok!(cuCtxCreate_v2(&raw mut inner, 0_u32, 0_i32));
    let (mut module, mut function) = (0_u64, 0_u64);
    ok!(cuModuleLoadData(&raw mut module, PTX.as_ptr()));
    ok!(cuModuleGetFunction(&raw mut function, module, c"nvshare_spin".as_ptr()));
    let forever = u64::MAX / 4;
    assert_eq!(client::launch(function, 0, &[forever]), 0);
    ok!(cuCtxDestroy_v2(inner));
    // The context of this test goes on.
    ok!(cuCtxSynchronize());
}

#[test]
fn the_fingerprint_kernel_computes_what_the_library_does() {
    use nvshare_common::fingerprint::{Fingerprint, Key, fingerprint};
    let context = Context::new();
    let (blocks, block_bytes) = (3_usize, 64 << 10);
    let (base, out, key_at) =
        (context.device(blocks * block_bytes), context.device(4096), context.device(4096));
    ok!(cuMemsetD8_v2(base, 0_u8, blocks * block_bytes));
    assert_eq!(context.launch(0, "nvshare_fill", &[base, (block_bytes / 8) as u64, 3, 0]), 0);
    let key = Key::from_random([11, 22, 33, 44]).expect("a key");
    ok!(cuMemcpyHtoD_v2(key_at, key.words().as_ptr(), 32_usize));
    let arguments = [base, blocks as u64, block_bytes as u64, key_at, out];
    assert_eq!(context.launch(0, "nvshare_fingerprint", &arguments), 0);
    let mut found = [Fingerprint::default(); 3];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), out, size_of_val(&found)));
    let mut host = vec![0_u8; blocks * block_bytes];
    ok!(cuMemcpyDtoH_v2(host.as_mut_ptr(), base, host.len()));
    let expected: Vec<_> = host.chunks(block_bytes).map(|block| fingerprint(&key, block)).collect();
    assert_eq!(found[..], expected[..]);
    assert!(!found[0].is_zero() && found[1].is_zero());
}
