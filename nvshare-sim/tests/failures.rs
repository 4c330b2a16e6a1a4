//! What goes wrong: by mistakes that a GPU punishes, and on demand.

#![expect(unsafe_code, reason = "the end of a process, as a program may have it")]

mod client;

use client::{Context, DRIVER};

const ILLEGAL_ADDRESS: u32 = 700;
const MISALIGNED: u32 = 716;
const LAUNCH_FAILED: u32 = 719;
const NO_DEVICE: u32 = 100;

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Default)]
struct Properties {
    kind: u32,
    handles: u32,
    location: [u32; 2],
    metadata: u64,
    flags: [u8; 8],
}

#[test]
fn a_kernel_that_touches_what_is_not_mapped_ends_all_contexts_of_the_process_for_good() {
    if !client::is_alone() {
        client::alone(
            "a_kernel_that_touches_what_is_not_mapped_ends_all_contexts_of_the_process_for_good",
            &[],
        );
        return;
    }
    let context = Context::new();
    let good = context.device(4096);
    ok!(cuMemsetD8_v2(good, 1_u8, 4096_usize));
    let (mut inner, mut module, mut function, mut address) = (0_u64, 0_u64, 0_u64, 0_u64);
    ok!(cuCtxCreate_v2(&raw mut inner, 0_u32, 0_i32));
    ok!(cuModuleLoadData(&raw mut module, client::PTX.as_ptr()));
    ok!(cuModuleGetFunction(&raw mut function, module, c"nvshare_step".as_ptr()));
    ok!(cuMemAlloc_v2(&raw mut address, 2_usize << 20));
    ok!(cuMemFree_v2(address));
    let freed = address;
    let launch = || client::launch(function, 0, &[freed, 8, 1]);
    assert_eq!(launch(), 0, "the launch itself is fine");
    assert_eq!(call!(cuCtxSynchronize()), ILLEGAL_ADDRESS);
    assert_eq!(launch(), ILLEGAL_ADDRESS, "and from now on every call fails");
    assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 4096_usize)), ILLEGAL_ADDRESS);
    let violations = DRIVER.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("kernel `nvshare_step` writes"), "{violations:?}");
    let mut made = 0_u64;
    assert_eq!(call!(cuCtxCreate_v2(&raw mut made, 0_u32, 0_i32)), ILLEGAL_ADDRESS, "beside them");
    ok!(cuCtxDestroy_v2(inner));
    let mut value = 0_u64;
    assert_eq!(call!(cuMemcpyDtoH_v2(&raw mut value, good, 8_usize)), ILLEGAL_ADDRESS);
    ok!(cuCtxGetDevice(&raw mut value));
    drop(context);
    assert_eq!(call!(cuCtxCreate_v2(&raw mut made, 0_u32, 0_i32)), ILLEGAL_ADDRESS, "after all of them");
    assert_eq!(call!(cuDevicePrimaryCtxRetain(&raw mut made, 0_i32)), ILLEGAL_ADDRESS);
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    assert_eq!(
        call!(cuDevicePrimaryCtxRetain(&raw mut made, 0_i32)),
        ILLEGAL_ADDRESS,
        "nor does a reset mend it"
    );
}

#[test]
fn every_error_of_a_kernel_is_for_good_and_everywhere() {
    if !client::is_alone() {
        let name = "every_error_of_a_kernel_is_for_good_and_everywhere";
        client::alone(name, &[("PART", "misaligned")]);
        client::alone(name, &[("PART", "failed"), ("NVSHARE_SIM_FAULTS", "launch:1=fail")]);
        return;
    }
    let context = Context::new();
    let (device, mut other, mut word) = (context.device(4096), 0_u64, 0_u64);
    let expected = if std::env::var("PART").as_deref() == Ok("failed") { LAUNCH_FAILED } else { MISALIGNED };
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    ok!(cuCtxSetCurrent(context.handle));
    assert_eq!(context.launch(0, "nvshare_step", &[device + 1, 1, 1]), 0);
    assert_eq!(call!(cuCtxSynchronize()), expected);
    ok!(cuCtxSetCurrent(other));
    assert_eq!(call!(cuCtxSynchronize()), expected);
    assert_eq!(call!(cuMemcpyDtoH_v2(&raw mut word, device, 8_usize)), expected);
    ok!(cuCtxDestroy_v2(other));
    assert_eq!(call!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32)), expected);
}

#[test]
fn a_kernel_cannot_reach_pageable_memory() {
    if !client::is_alone() {
        client::alone("a_kernel_cannot_reach_pageable_memory", &[]);
        return;
    }
    let context = Context::new();
    let word = Box::new(5_u64);
    assert_eq!(context.launch(0, "nvshare_step", &[std::ptr::from_ref(&*word) as u64, 1, 1]), 0);
    assert_eq!(call!(cuCtxSynchronize()), ILLEGAL_ADDRESS);
    assert_eq!((*word, DRIVER.violations().len()), (5, 1));
}

#[test]
fn a_copy_to_an_address_that_is_no_devices_is_refused_at_the_call() {
    let context = Context::new();
    let (mut here, there) = (1_u64, 2_u64);
    assert_eq!(call!(cuMemcpyHtoD_v2(&raw mut here as u64, &raw const there, 8_usize)), 1);
    assert_eq!(call!(cuMemcpyDtoH_v2(&raw mut here, &raw const there as u64, 8_usize)), 1);
    assert_eq!(call!(cuMemsetD8_v2(&raw mut here as u64, 0_u8, 8_usize)), 1);
    ok!(cuCtxSynchronize());
    drop(context);
}

#[test]
fn memory_that_is_freed_waits_for_the_work_that_uses_it() {
    let context = Context::new();
    let (stream, device, flag) = (context.stream(1), context.device(2 << 20), context.pinned(4096));
    flag[0] = 0;
    // Before the launch: on a machine that has more to do the kernel may be half over when this thread goes on.
    let start = std::time::Instant::now();
    assert_eq!(context.launch(stream, "nvshare_store_late", &[device, 16, 1, 30_000_000]), 0);
    ok!(cuMemFree_v2(device));
    assert!(start.elapsed().as_millis() >= 25, "{:?}", start.elapsed());
    ok!(cuStreamSynchronize(stream));
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn unmapping_memory_under_a_kernel_is_a_violation_and_ends_the_work() {
    if !client::is_alone() {
        client::alone("unmapping_memory_under_a_kernel_is_a_violation_and_ends_the_work", &[]);
        return;
    }
    let context = Context::new();
    let (stream, bytes) = (context.stream(1), 2_usize << 20);
    let (mut address, mut handle) = (0_u64, 0_u64);
    let properties = Properties { kind: 1, location: [1, 0], ..Properties::default() };
    ok!(cuMemAddressReserve(&raw mut address, bytes, 0_usize, 0_u64, 0_u64));
    ok!(cuMemCreate(&raw mut handle, bytes, &raw const properties, 0_u64));
    ok!(cuMemMap(address, bytes, 0_usize, handle, 0_u64));
    let access = [1_u32, 0, 3];
    ok!(cuMemSetAccess(address, bytes, access.as_ptr(), 1_usize));
    assert_eq!(context.launch(stream, "nvshare_store_late", &[address, 16, 1, u64::MAX / 4]), 0);
    let _ = call!(cuMemUnmap(address, bytes));
    let violations = DRIVER.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("nvshare_store_late"), "{violations:?}");
    assert_eq!(call!(cuStreamSynchronize(stream)), ILLEGAL_ADDRESS);
}

#[test]
fn faults_strike_where_they_are_asked_for() {
    if !client::is_alone() {
        let faults = "copy:2=oom,launch:2=slow/60,launch:4=fail,module:2=fail";
        client::alone("faults_strike_where_they_are_asked_for", &[("NVSHARE_SIM_FAULTS", faults)]);
        return;
    }
    let context = Context::new();
    let (device, mut word) = (context.device(4096), 3_u64);
    ok!(cuMemcpyHtoD_v2(device, &raw const word, 8_usize));
    assert_eq!(call!(cuMemcpyDtoH_v2(&raw mut word, device, 8_usize)), 2);
    ok!(cuMemcpyDtoH_v2(&raw mut word, device, 8_usize));
    let mut module = 0_u64;
    assert_eq!(call!(cuModuleLoadData(&raw mut module, client::PTX.as_ptr())), 999);
    assert_eq!(context.launch(0, "nvshare_step", &[device, 1, 1]), 0);
    ok!(cuCtxSynchronize());
    let start = std::time::Instant::now();
    assert_eq!(context.launch(0, "nvshare_step", &[device, 1, 1]), 0);
    ok!(cuCtxSynchronize());
    assert!(start.elapsed().as_millis() >= 60);
    assert_eq!(context.launch(0, "nvshare_step", &[device, 1, 1]), 0);
    ok!(cuMemcpyDtoH_v2(&raw mut word, device, 8_usize));
    assert_eq!(word, 6);
    assert_eq!(context.launch(0, "nvshare_step", &[device, 1, 1]), 0);
    assert_eq!(call!(cuCtxSynchronize()), LAUNCH_FAILED);
    assert_eq!(call!(cuMemcpyDtoH_v2(&raw mut word, device, 8_usize)), LAUNCH_FAILED);
}

#[test]
fn a_fault_of_a_function_strikes_and_one_that_never_could_is_refused_by_the_first_call() {
    const NAME: &str = "a_fault_of_a_function_strikes_and_one_that_never_could_is_refused_by_the_first_call";
    if !client::is_alone() {
        client::alone(NAME, &[("NVSHARE_SIM_FAULTS", "cuMemGetInfo_v2:2=fail"), ("PART", "struck")]);
        // Misspelled; without its version; not simulated; one that works before `cuInit`.
        for name in
            ["cuMemGetInof_v2", "memory", "cuMemGetInfo_v3", "cuGraphicsMapResources", "cuDriverGetVersion"]
        {
            let faults = format!("copy:1=oom,{name}:1=fail");
            let said = client::alone(NAME, &[("NVSHARE_SIM_FAULTS", &faults), ("PART", name)]);
            assert!(said.contains(&format!("NVSHARE_SIM_FAULTS={name}:1=fail: expected")), "{said}");
        }
        return;
    }
    let part = std::env::var("PART").unwrap();
    if part == "struck" {
        let _context = Context::new();
        let [mut free, mut total] = [0_usize; 2];
        let mut ask = || call!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
        assert_eq!([ask(), ask(), ask()], [0, 999, 0]);
    } else {
        assert_eq!(call!(cuInit(0_u32)), NO_DEVICE);
        let violations = DRIVER.violations();
        assert!(violations.len() == 1 && violations[0].contains(&part), "{violations:?}");
    }
}

#[test]
fn a_hung_kernel_does_not_keep_the_process_from_ending() {
    if !client::is_alone() {
        let faults = [("NVSHARE_SIM_FAULTS", "launch:1=hang")];
        client::alone("a_hung_kernel_does_not_keep_the_process_from_ending", &faults);
        return;
    }
    let context = Context::new();
    assert_eq!(context.launch(0, "nvshare_spin", &[0]), 0);
    let event = context.event();
    ok!(cuEventRecord(event, 0_u64));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(call!(cuEventQuery(event)), 600);
    // The test's end comes before the context's.
    std::mem::forget(context);
}

#[test]
fn pageable_memory_that_changes_while_a_copy_reads_it_is_a_violation() {
    if !client::is_alone() {
        client::alone("pageable_memory_that_changes_while_a_copy_reads_it_is_a_violation", &[]);
        return;
    }
    let context = Context::new();
    let (stream, bytes) = (context.stream(1), 16_usize << 20);
    let device = context.device(bytes);
    let host: Vec<std::sync::atomic::AtomicU64> = (0..bytes / 8).map(|_| 1.into()).collect();
    // The copy takes 32 ms.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(8));
            for word in &host {
                word.store(2, std::sync::atomic::Ordering::Relaxed);
            }
        });
        ok!(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), bytes, stream));
    });
    let violations = DRIVER.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("cuMemcpyHtoDAsync_v2: pageable memory"), "{violations:?}");
}

#[test]
fn the_driver_is_gone_for_what_runs_after_its_end() {
    extern "C" fn last() {
        let mut count = 0;
        let gone = call!(cuDeviceGetCount(&raw mut count)) == 4;
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(i32::from(!gone)) };
    }
    if !client::is_alone() {
        client::alone("the_driver_is_gone_for_what_runs_after_its_end", &[]);
        return;
    }
    // SAFETY: registered before the driver's own handler, so it is called after it.
    unsafe { libc::atexit(last) };
    ok!(cuInit(0_u32));
}
