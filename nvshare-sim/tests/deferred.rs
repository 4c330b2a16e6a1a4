//! Arrays whose mapping is deferred, and the tile pools that are mapped behind them.

mod client;

use client::array::{BYTE, FLOAT, Form, LAYERED, SURFACE, array, copy, host, into, made};
use client::tiles::{Operation, PLAIN, TILES, created, done, map, properties, required, submit, unmap};
use client::{Context, DRIVER, free_bytes};

const INVALID_VALUE: u32 = 1;
const INVALID_HANDLE: u32 = 400;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_FAILED: u32 = 719;

/// `CUDA_ARRAY3D_DEFERRED_MAPPING`.
const DEFERRED: u32 = 0x80;
/// `CU_AD_FORMAT_HALF`, `_UNORM_INT8X4`.
const HALF: u32 = 0x10;
const UNORM: u32 = 0xc2;

const MIB: usize = 1 << 20;
const BLOCK: usize = 2 * MIB;

/// Eight MiB in rows of 8 KiB.
const SIZED: Form = Form { width: 2048, height: 1024, depth: 0, format: BYTE, channels: 4, flags: DEFERRED };
const ALL: [usize; 3] = [8192, 1024, 1];

/// Sets all bytes of an array of [`SIZED`].
fn fill(to: u64, value: u8) {
    let bytes = vec![value; 8 * MIB];
    assert_eq!(copy(host(&bytes, 8192), array(to, [0; 3]), ALL), 0);
}

/// The byte that all of such an array are.
fn seen(of: u64) -> u8 {
    let mut bytes = vec![0xee_u8; 8 * MIB];
    assert_eq!(copy(array(of, [0; 3]), into(&mut bytes, 8192), ALL), 0);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "all of it has the same value");
    bytes[0]
}

#[test]
fn every_form_that_is_made_is_made_without_memory_too_and_none_else() {
    let _context = Context::new();
    let mut supported = 0_i32;
    ok!(cuDeviceGetAttribute(&raw mut supported, 121_u32, 0_i32));
    assert_eq!(supported, 1);
    let form = |width, height, depth, format, channels, flags| Form {
        width,
        height,
        depth,
        format,
        channels,
        flags,
    };
    let forms = [
        (form(4096, 2048, 0, FLOAT, 1, 0), 32768),
        (form(1001, 333, 0, BYTE, 4, 0), 1536),
        (form(1024, 1024, 0, HALF, 4, SURFACE), 8192),
        (form(1024, 1024, 0, FLOAT, 4, 8), 16384),
        (form(65536, 0, 0, FLOAT, 1, 0), 2048),
        (form(4096, 0, 8, FLOAT, 1, LAYERED), 1024),
        (form(256, 256, 64, FLOAT, 1, SURFACE), 16384),
        (form(256, 256, 12, FLOAT, 1, LAYERED | 4), 3072),
        (form(1024, 1024, 0, UNORM, 4, 0), 4096),
        (form(1024, 1024, 0, BYTE, 1, 0x100), 1024),
    ];
    for (bare, kib) in forms {
        let plain = made(bare);
        assert_eq!(required(plain), Err(INVALID_VALUE), "{bare:?}");
        ok!(cuArrayDestroy(plain));
        let form = Form { flags: bare.flags | DEFERRED, ..bare };
        let before = free_bytes();
        let (one, mut told) = (made(form), Form::default());
        assert_eq!(free_bytes(), before, "it takes nothing of the card");
        ok!(cuArray3DGetDescriptor_v2(&raw mut told, one));
        assert_eq!(told, form);
        assert_eq!(required(one), Ok([kib << 10, 64 << 10]), "{bare:?}");
        ok!(cuArrayDestroy(one));
        assert_eq!(required(one), Err(INVALID_HANDLE));
    }
    for bare in [form(64, 64, 5, FLOAT, 1, 4), form(1 << 20, 0, 0, FLOAT, 1, 0), form(64, 64, 0, FLOAT, 3, 0)]
    {
        let form = Form { flags: bare.flags | DEFERRED, ..bare };
        let refused = |form: Form| call!(cuArray3DCreate_v2(std::ptr::from_mut(&mut 0_u64), &raw const form));
        assert_eq!((refused(bare), refused(form)), (INVALID_VALUE, INVALID_VALUE), "{bare:?}");
    }
}

#[test]
fn an_array_has_the_bytes_of_the_pool_that_is_mapped_and_views_of_it_stay() {
    let context = Context::new();
    let one = made(Form { flags: DEFERRED | SURFACE, ..SIZED });
    let (mut resource, look) = ([0_u64; 18], [0_u32; 26]);
    resource[1] = one;
    let (mut texture, mut surface) = (0_u64, 0_u64);
    ok!(cuTexObjectCreate(&raw mut texture, resource.as_ptr(), look.as_ptr(), std::ptr::null::<u64>()));
    ok!(cuSurfObjectCreate(&raw mut surface, resource.as_ptr()));
    let [first, second] = [created(8 * MIB, TILES), created(8 * MIB, TILES)];
    done(map(one, first));
    fill(one, 3);
    done(unmap(one));
    done(map(one, second));
    fill(one, 4);
    // Straight from one to the other as well, and through any stream.
    let stream = context.stream(1);
    assert_eq!(submit(&[map(one, first)], stream), 0);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(seen(one), 3);
    let back = map(one, second);
    ok!(cuMemMapArrayAsync_ptsz(&raw const back, 1_u32, 0_u64));
    ok!(cuStreamSynchronize_ptsz(0_u64));
    assert_eq!(seen(one), 4);
    let mut told = [1_u64; 18];
    ok!(cuTexObjectGetResourceDesc(told.as_mut_ptr(), texture));
    assert_eq!(told[1], one);
    ok!(cuTexObjectDestroy(texture));
    ok!(cuSurfObjectDestroy(surface));
    ok!(cuArrayDestroy(one));
    ok!(cuMemRelease(first));
    ok!(cuMemRelease(second));
}

#[test]
fn arrays_share_a_pool_in_parts_and_what_is_mapped_twice_is_the_same() {
    let _context = Context::new();
    // Its parts begin within blocks of the card.
    let [one, two, three] = [0; 3].map(|_: u32| made(SIZED));
    let pool = created(20 * MIB, TILES);
    let at = |array, offset| Operation { offset: offset as u64, ..map(array, pool) };
    assert_eq!(submit(&[at(one, 64 << 10), at(two, 9 * MIB), at(three, 9 * MIB)], 0), 0);
    fill(one, 1);
    fill(two, 2);
    assert_eq!((seen(one), seen(two), seen(three)), (1, 2, 2));
    for offset in [4096, 12 * MIB + 64 * 1024, usize::MAX - (64 << 10) + 1] {
        assert_eq!(submit(&[at(one, offset)], 0), INVALID_VALUE, "{offset:#x}");
    }
    // What is left over of the one is the other's.
    done(at(one, MIB + (64 << 10)));
    let mut edge = [0_u8; 8192];
    assert_eq!(copy(array(one, [0, 1023, 0]), into(&mut edge, 8192), [8192, 1, 1]), 0);
    assert_eq!(edge, [2; 8192]);
    assert_eq!(copy(array(one, [0; 3]), into(&mut edge, 8192), [8192, 1, 1]), 0);
    assert_eq!(edge, [1; 8192]);
    for array in [one, two, three] {
        ok!(cuArrayDestroy(array));
    }
    ok!(cuMemRelease(pool));
}

#[test]
fn levels_are_mapped_with_the_whole() {
    let _context = Context::new();
    let form = Form { width: 1024, height: 1024, format: BYTE, channels: 4, flags: DEFERRED, depth: 0 };
    let (mut whole, mut level, mut needs) = (0_u64, 0_u64, [0_usize; 4]);
    let before = free_bytes();
    ok!(cuMipmappedArrayCreate(&raw mut whole, &raw const form, 5_u32));
    assert_eq!(free_bytes(), before);
    ok!(cuMipmappedArrayGetMemoryRequirements(needs.as_mut_ptr(), whole, 0_i32));
    assert_eq!(needs[..2], [5504 << 10, 64 << 10]);
    ok!(cuMipmappedArrayGetLevel(&raw mut level, whole, 4_u32));
    let pool = created(6 * MIB, TILES);
    assert_eq!(submit(&[map(level, pool)], 0), INVALID_VALUE, "not by itself");
    done(Operation { kind: 1, ..map(whole, pool) });
    let (bytes, mut back) = ([7_u8; 64 * 256], [0_u8; 64 * 256]);
    assert_eq!(copy(host(&bytes, 256), array(level, [0; 3]), [256, 64, 1]), 0);
    assert_eq!(copy(array(level, [0; 3]), into(&mut back, 256), [256, 64, 1]), 0);
    assert_eq!(back, bytes);
    ok!(cuMipmappedArrayDestroy(whole));
    ok!(cuMemRelease(pool));
    assert_eq!(free_bytes(), before);
    let bare = Form { flags: 0, ..form };
    ok!(cuMipmappedArrayCreate(&raw mut whole, &raw const bare, 5_u32));
    assert_eq!(call!(cuMipmappedArrayGetMemoryRequirements(needs.as_mut_ptr(), whole, 0_i32)), INVALID_VALUE);
    ok!(cuMipmappedArrayDestroy(whole));
}

#[test]
fn what_is_refused_changes_nothing() {
    let _context = Context::new();
    let (one, two, plain) = (made(SIZED), made(SIZED), made(Form { flags: 0, ..SIZED }));
    let (pool, other, memory) = (created(8 * MIB, TILES), created(8 * MIB, TILES), created(8 * MIB, PLAIN));
    let gone = created(8 * MIB, TILES);
    ok!(cuMemRelease(gone));
    done(map(one, pool));
    fill(one, 5);
    let good = map(one, other);
    for (bad, why) in [
        (map(two, memory), "no tile pool"),
        (map(two, gone), "released"),
        (map(plain, other), "its memory is its own"),
        (Operation { devices: 2, ..map(two, other) }, "another device"),
        (Operation { devices: 0, ..map(two, other) }, "no device"),
        (Operation { flags: 1, ..map(two, other) }, "flags"),
        (Operation { how: 3, ..map(two, other) }, "no operation"),
        (Operation { handle: other, ..unmap(two) }, "nothing is unmapped by a handle"),
    ] {
        assert_eq!(submit(&[good, bad], 0), INVALID_VALUE, "{why}");
        assert_eq!(seen(one), 5, "{why}");
    }
    assert_eq!(submit(&[map(0x1234, other)], 0), INVALID_HANDLE);
    // What was refused keeps no memory: this is the only reference.
    let before = free_bytes();
    ok!(cuMemRelease(other));
    assert_eq!(free_bytes(), before + 8 * MIB);
    for array in [one, two, plain] {
        ok!(cuArrayDestroy(array));
    }
    ok!(cuMemRelease(pool));
    ok!(cuMemRelease(memory));
}

#[test]
fn a_tile_pool_is_physical_memory_that_no_address_leads_to() {
    let _context = Context::new();
    let mut start = 0_u64;
    ok!(cuMemAddressReserve(&raw mut start, BLOCK, 0_usize, 0_u64, 0_u64));
    for (usage, mapped) in [(0, 0), (TILES, INVALID_VALUE), (2, 0), (3, INVALID_VALUE)] {
        let (before, mut told) = (free_bytes(), [0_u32; 8]);
        let handle = created(BLOCK, usage);
        assert_eq!(free_bytes(), before - BLOCK);
        ok!(cuMemGetAllocationPropertiesFromHandle(told.as_mut_ptr(), handle));
        assert_eq!(told, properties(usage));
        assert_eq!(call!(cuMemMap(start, BLOCK, 0_usize, handle, 0_u64)), mapped, "usage {usage}");
        ok!(cuMemUnmap(start, BLOCK));
        ok!(cuMemRelease(handle));
        assert_eq!(free_bytes(), before);
        let (mut pool, mut asked) = (0_u64, [0_u64; 11]);
        (asked[0], asked[1], asked[4]) = (1, 1, u64::from(usage));
        ok!(cuMemPoolCreate(&raw mut pool, asked.as_ptr()));
        ok!(cuMemPoolDestroy(pool));
    }
    ok!(cuMemAddressFree(start, BLOCK));
}

#[test]
fn memory_lives_while_it_is_mapped_and_not_longer() {
    let _context = Context::new();
    let whole = free_bytes();
    let (one, pool) = (made(SIZED), created(8 * MIB, TILES));
    assert_eq!(submit(&[map(one, pool)], 0), 0);
    // Before its turn, perhaps.
    ok!(cuMemRelease(pool));
    fill(one, 6);
    assert_eq!((seen(one), free_bytes()), (6, whole - 8 * MIB));
    done(unmap(one));
    assert_eq!(free_bytes(), whole);
    let pool = created(8 * MIB, TILES);
    done(map(one, pool));
    ok!(cuMemRelease(pool));
    ok!(cuArrayDestroy(one));
    assert_eq!(free_bytes(), whole, "it went with the array");
    let (two, pool) = (made(SIZED), created(8 * MIB, TILES));
    done(map(two, pool));
    ok!(cuArrayDestroy(two));
    assert_eq!(free_bytes(), whole - 8 * MIB, "a handle of it is left");
    // With the context of the array, too.
    let mut other = 0_u64;
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    let three = made(SIZED);
    done(map(three, pool));
    ok!(cuMemRelease(pool));
    assert_eq!(free_bytes(), whole - 8 * MIB);
    ok!(cuCtxDestroy_v2(other));
    assert_eq!(free_bytes(), whole);
}

#[test]
fn memory_is_mapped_in_the_order_of_the_stream_and_waits_for_no_other() {
    let context = Context::new();
    let (one, first, second) = (made(SIZED), created(8 * MIB, TILES), created(8 * MIB, TILES));
    for (pool, value) in [(second, 2), (first, 1)] {
        done(map(one, pool));
        fill(one, value);
    }
    let (stream, beside, flag) = (context.stream(1), context.stream(1), context.pinned(4096));
    flag[0] = 0;
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    assert_eq!(submit(&[map(one, second)], stream), 0);
    // Beside the kernel: another array is made, and gets memory.
    let (two, third) = (made(SIZED), created(8 * MIB, TILES));
    assert_eq!(submit(&[map(two, third)], beside), 0);
    ok!(cuStreamSynchronize(beside));
    assert_ne!(call!(cuStreamQuery(stream)), 0, "the kernel runs");
    assert_eq!(seen(one), 1, "its turn has not come");
    client::set_flag(flag);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(seen(one), 2);
    ok!(cuArrayDestroy(one));
    ok!(cuArrayDestroy(two));
    for pool in [first, second, third] {
        ok!(cuMemRelease(pool));
    }
}

#[test]
fn a_copy_of_an_array_with_nothing_behind_it_ends_the_process_s_contexts() {
    if !client::is_alone() {
        let name = "a_copy_of_an_array_with_nothing_behind_it_ends_the_process_s_contexts";
        client::alone(name, &[("PART", "never mapped")]);
        client::alone(name, &[("PART", "unmapped")]);
        return;
    }
    let context = Context::new();
    let (one, memory, stream) = (made(SIZED), context.device(8 * MIB), context.stream(1));
    let pool = created(8 * MIB, TILES);
    if std::env::var("PART").as_deref() == Ok("unmapped") {
        done(map(one, pool));
        done(unmap(one));
    }
    assert!(DRIVER.violations().is_empty());
    ok!(cuMemcpyAtoD_v2(memory, one, 0_usize, 8192_usize));
    assert_eq!(call!(cuCtxSynchronize()), LAUNCH_FAILED);
    assert_eq!(call!(cuStreamSynchronize(stream)), LAUNCH_FAILED);
    assert_eq!(call!(cuMemcpyAtoD_v2(memory, one, 0_usize, 8192_usize)), LAUNCH_FAILED);
    let violations = DRIVER.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("nothing is mapped behind the array"), "{violations:?}");
}

#[test]
fn taking_the_memory_away_under_a_copy_is_a_violation() {
    if !client::is_alone() {
        client::alone("taking_the_memory_away_under_a_copy_is_a_violation", &[]);
        return;
    }
    let context = Context::new();
    let (one, pool, memory) = (made(SIZED), created(8 * MIB, TILES), context.device(8 * MIB));
    done(map(one, pool));
    let (stream, beside, flag) = (context.stream(1), context.stream(1), context.pinned(4096));
    flag[0] = 0;
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    let into_it = client::array::Copy {
        from: client::array::device(memory, 8192),
        to: array(one, [0; 3]),
        extents: ALL,
    };
    ok!(cuMemcpy3DAsync_v2(&raw const into_it, stream));
    assert_eq!(submit(&[unmap(one)], beside), 0);
    assert_eq!(call!(cuStreamSynchronize(beside)), ILLEGAL_ADDRESS);
    let violations = DRIVER.violations();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].contains("cuMemMapArrayAsync of"), "{violations:?}");
    assert!(violations[0].contains("still uses it"), "{violations:?}");
}
