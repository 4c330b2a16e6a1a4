//! Arrays: what they are, copies to and from them, what they take of the card, and views of them.

mod client;

use client::array::{
    BYTE, Copy, End, FLOAT, Flat, Form, LAYERED, PLANE, SHORT, SURFACE, array, copy, device, host, into, made,
};
use client::{Context, free_bytes};

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const INVALID_HANDLE: u32 = 400;
const NOT_SUPPORTED: u32 = 801;

#[test]
fn an_array_is_what_it_was_made_as() {
    let _context = Context::new();
    let flat = Flat { width: 64, height: 16, format: FLOAT, channels: 4 };
    let mut one = 0_u64;
    ok!(cuArrayCreate_v2(&raw mut one, &raw const flat));
    let (mut told, mut deep) = (Flat::default(), Form::default());
    ok!(cuArrayGetDescriptor_v2(&raw mut told, one));
    ok!(cuArray3DGetDescriptor_v2(&raw mut deep, one));
    assert_eq!(told, flat);
    assert_eq!(deep, Form { width: 64, height: 16, depth: 0, format: FLOAT, channels: 4, flags: 0 });
    let mut requirements = [0_u64; 4];
    assert_eq!(call!(cuArrayGetMemoryRequirements(requirements.as_mut_ptr(), one, 0_i32)), INVALID_VALUE);
    ok!(cuArrayDestroy(one));
    assert_eq!(call!(cuArrayDestroy(one)), INVALID_HANDLE);
    assert_eq!(call!(cuArrayGetDescriptor_v2(&raw mut told, one)), INVALID_HANDLE);
}

#[test]
fn what_no_device_makes_is_refused() {
    let _context = Context::new();
    let refused = |form: Form| {
        let mut none = 7_u64;
        let code = call!(cuArray3DCreate_v2(&raw mut none, &raw const form));
        assert_eq!(none, 7);
        code
    };
    assert_eq!(refused(Form { width: 0, ..PLANE }), INVALID_VALUE);
    assert_eq!(refused(Form { channels: 3, ..PLANE }), INVALID_VALUE);
    assert_eq!(refused(Form { format: 0x77, ..PLANE }), INVALID_VALUE);
    assert_eq!(refused(Form { width: 1 << 20, ..PLANE }), INVALID_VALUE);
    assert_eq!(refused(Form { depth: 5, flags: 4, ..PLANE }), INVALID_VALUE);
    assert_eq!(refused(Form { flags: 0x40, ..PLANE }), NOT_SUPPORTED);
    let plane = PLANE;
    assert_eq!(call!(cuArray3DCreate_v2(std::ptr::null_mut::<u64>(), &raw const plane)), INVALID_VALUE);
    assert_eq!(
        call!(cuArrayCreate_v2(std::ptr::from_mut(&mut 0_u64), std::ptr::null::<Flat>())),
        INVALID_VALUE
    );
}

#[test]
fn boxes_go_in_and_come_out_by_host_device_and_array() {
    let context = Context::new();
    let form = Form { width: 8, height: 4, depth: 3, format: BYTE, channels: 4, flags: 0 };
    let (one, two) = (made(form), made(form));
    let bytes: Vec<u8> = (0..32 * 4 * 3).map(|byte: u32| byte as u8).collect();
    assert_eq!(copy(host(&bytes, 32), array(one, [0; 3]), [32, 4, 3]), 0);
    let inner = [8, 2, 2];
    let memory = context.device(4096);
    assert_eq!(copy(array(one, [4, 1, 1]), device(memory, 16), inner), 0);
    assert_eq!(copy(device(memory, 16), array(two, [0, 2, 0]), inner), 0);
    assert_eq!(copy(array(two, [0, 2, 0]), array(one, [24, 0, 0]), inner), 0);
    let mut back = vec![0_u8; bytes.len()];
    assert_eq!(copy(array(one, [0; 3]), into(&mut back, 32), [32, 4, 3]), 0);
    let mut expected = bytes.clone();
    for (z, y, x) in (0..2).flat_map(|z| (0..2).flat_map(move |y| (0..8).map(move |x| (z, y, x)))) {
        expected[(z * 4 + y) * 32 + 24 + x] = bytes[((z + 1) * 4 + y + 1) * 32 + 4 + x];
    }
    assert_eq!(back, expected);
}

#[test]
fn copies_over_the_edge_are_refused_and_those_through_an_element_or_of_another_context_are_not() {
    let context = Context::new();
    let one = made(PLANE);
    let bytes = [0_u8; 256 * 17];
    let goes = |at, extents| copy(host(&bytes, 256), array(one, at), extents);
    assert_eq!(goes([0, 0, 0], [256, 16, 1]), 0);
    assert_eq!(goes([4, 0, 0], [256, 16, 1]), INVALID_VALUE);
    assert_eq!(goes([0, 1, 0], [256, 16, 1]), INVALID_VALUE);
    assert_eq!(goes([0, 0, 1], [4, 1, 1]), INVALID_VALUE);
    assert_eq!(goes([256, 0, 0], [4, 1, 1]), INVALID_VALUE);
    assert_eq!(goes([2, 0, 0], [8, 1, 1]), 0);
    assert_eq!(goes([0, 0, 0], [3, 1, 1]), 0);
    assert_eq!(goes([0, 0, 0], [0, 1, 1]), 0);
    assert_eq!(copy(host(&bytes, 256), array(0x1234, [0; 3]), [4, 1, 1]), INVALID_VALUE);
    let mut other = 0_u64;
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    assert_eq!(goes([0, 0, 0], [256, 16, 1]), 0);
    let (stream, into) =
        (context.stream(1), Copy { from: host(&bytes, 256), to: array(one, [0; 3]), extents: [256, 16, 1] });
    ok!(cuMemcpy3DAsync_v2(&raw const into, stream));
    ok!(cuStreamSynchronize(stream));
    // So does the form that names contexts.
    let end = End { context: context.handle, ..array(one, [0; 3]) };
    let across = Copy { from: host(&bytes, 256), to: end, extents: [256, 16, 1] };
    ok!(cuMemcpy3DPeer(&raw const across));
    ok!(cuCtxDestroy_v2(other));
}

#[test]
fn rows_go_to_and_from_the_first_row_of_arrays_in_stream_order() {
    let context = Context::new();
    let row = Form { width: 256, format: BYTE, channels: 1, ..Form::default() };
    let (one, two, plane) = (made(row), made(row), made(PLANE));
    let (stream, memory) = (context.stream(1), context.device(4096));
    let words = context.pinned(256);
    words.fill(0x0102_0304_0506_0708);
    ok!(cuMemcpyHtoAAsync_v2(one, 0_usize, words.as_ptr(), 256_usize, stream));
    let back = context.pinned(256);
    ok!(cuMemcpyAtoHAsync_v2(back.as_mut_ptr(), one, 0_usize, 256_usize, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(back, words);
    ok!(cuMemcpyAtoA_v2(two, 128_usize, one, 0_usize, 128_usize));
    ok!(cuMemcpyAtoD_v2(memory, two, 128_usize, 128_usize));
    ok!(cuMemcpyDtoA_v2(two, 0_usize, memory, 128_usize));
    back.fill(0);
    ok!(cuMemcpyAtoH_v2(back.as_mut_ptr(), two, 0_usize, 256_usize));
    assert_eq!(back, words);
    ok!(cuMemcpyHtoA_v2(two, 0_usize, words.as_ptr(), 256_usize));
    assert_eq!(call!(cuMemcpyHtoA_v2(two, 1_usize, words.as_ptr(), 256_usize)), INVALID_VALUE);
    ok!(cuMemcpyHtoA_v2(plane, 128_usize, words.as_ptr(), 64_usize));
    ok!(cuMemcpyHtoAAsync_v2(plane, 2_usize, words.as_ptr(), 7_usize, stream));
    ok!(cuStreamSynchronize(stream));
    ok!(cuMemcpyAtoA_v2(plane, 0_usize, plane, 128_usize, 64_usize));
    ok!(cuMemcpyAtoD_v2(memory, plane, 0_usize, 64_usize));
    ok!(cuMemcpyDtoA_v2(plane, 64_usize, memory, 64_usize));
    back.fill(0);
    ok!(cuMemcpyAtoH_v2(back.as_mut_ptr(), plane, 0_usize, 192_usize));
    assert_eq!(back[..24], words[..24]);
    assert_eq!(
        call!(cuMemcpyHtoA_v2(plane, 128_usize, words.as_ptr(), 256_usize)),
        INVALID_VALUE,
        "over the row"
    );
    assert_eq!(call!(cuMemcpyAtoA_v2(plane, 0_usize, one, 0_usize, 4_usize)), INVALID_VALUE);
}

#[test]
fn captured_copies_reach_the_array_when_the_graph_is_launched() {
    let context = Context::new();
    let one = made(PLANE);
    let (stream, memory) = (context.stream(1), context.device(4096));
    ok!(cuMemsetD8_v2(memory, 9_u8, 4096_usize));
    ok!(cuCtxSynchronize());
    ok!(cuStreamBeginCapture_v2(stream, 0_u32));
    let captured = Copy { from: device(memory, 256), to: array(one, [0; 3]), extents: [256, 16, 1] };
    ok!(cuMemcpy3DAsync_v2(&raw const captured, stream));
    let (mut graph, mut executable) = (0_u64, 0_u64);
    ok!(cuStreamEndCapture(stream, &raw mut graph));
    ok!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0_u64));
    let mut back = [0_u8; 4096];
    assert_eq!(copy(array(one, [0; 3]), into(&mut back, 256), [256, 16, 1]), 0);
    assert_ne!(back[7], 9);
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(copy(array(one, [0; 3]), into(&mut back, 256), [256, 16, 1]), 0);
    assert_eq!(back, [9; 4096]);
}

#[test]
fn an_array_takes_memory_of_the_card_until_it_or_its_context_is_gone() {
    let _context = Context::new();
    let large = Form { width: 4096, height: 2048, format: FLOAT, channels: 1, ..Form::default() };
    let before = free_bytes();
    let one = made(large);
    assert_eq!(free_bytes(), before - (32 << 20));
    ok!(cuArrayDestroy(one));
    assert_eq!(free_bytes(), before);
    let mut other = 0_u64;
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    let lost = made(large);
    assert_eq!(free_bytes(), before - (32 << 20));
    ok!(cuCtxDestroy_v2(other));
    assert_eq!(free_bytes(), before);
    assert_eq!(call!(cuArrayDestroy(lost)), INVALID_HANDLE);
    let huge = Form { width: 16384, height: 16384, depth: 16384, format: FLOAT, channels: 4, flags: 0 };
    assert_eq!(call!(cuArray3DCreate_v2(std::ptr::from_mut(&mut 0_u64), &raw const huge)), OUT_OF_MEMORY);
}

#[test]
fn small_arrays_share_blocks_of_the_card_and_large_ones_round_up_to_them() {
    let _context = Context::new();
    let takes = |width, height, depth, channels, flags| {
        let before = free_bytes();
        made(Form { width, height, depth, format: BYTE, channels, flags });
        (before - free_bytes()) >> 20
    };
    takes(64, 0, 0, 1, 0);
    assert_eq!([takes(4096, 4096, 0, 4, 0), takes(4096, 4096, 0, 1, 0)], [64, 16]);
    assert_eq!([takes(64, 64, 0, 1, 0), takes(100, 100, 0, 4, 0), takes(1 << 17, 0, 0, 1, 0)], [0, 2, 0]);
    assert_eq!([takes(256, 256, 256, 1, 0), takes(1000, 3, 0, 4, 0), takes(17, 4097, 0, 1, 0)], [16, 0, 0]);
    assert_eq!(takes(1000, 1000, 8, 1, LAYERED), 8);
    assert_eq!((0..200).map(|_| takes(64, 64, 0, 1, 0)).sum::<usize>(), 2);
}

#[test]
fn a_destroyed_array_waits_for_the_kernels_of_its_context() {
    let context = Context::new();
    let (one, stream) = (made(PLANE), context.stream(1));
    assert_eq!(context.launch(stream, "nvshare_spin", &[100_000_000]), 0);
    ok!(cuArrayDestroy(one));
    assert_eq!(call!(cuStreamQuery(stream)), 0, "it returned when the kernel was over");
}

#[test]
fn levels_are_arrays_that_go_with_the_whole() {
    let _context = Context::new();
    let (mut whole, mut level, mut again) = (0_u64, 0_u64, 0_u64);
    let plane = PLANE;
    ok!(cuMipmappedArrayCreate(&raw mut whole, &raw const plane, 100_u32));
    ok!(cuMipmappedArrayGetLevel(&raw mut level, whole, 3_u32));
    ok!(cuMipmappedArrayGetLevel(&raw mut again, whole, 3_u32));
    assert_eq!(level, again);
    let mut told = Flat::default();
    ok!(cuArrayGetDescriptor_v2(&raw mut told, level));
    assert_eq!(told, Flat { width: 8, height: 2, format: SHORT, channels: 2 });
    // 64 has seven levels.
    assert_eq!(call!(cuMipmappedArrayGetLevel(&raw mut again, whole, 7_u32)), INVALID_VALUE);
    let bytes = [3_u8; 64];
    assert_eq!(copy(host(&bytes, 32), array(level, [0; 3]), [32, 2, 1]), 0);
    let mut back = [0_u8; 64];
    assert_eq!(copy(array(level, [0; 3]), into(&mut back, 32), [32, 2, 1]), 0);
    assert_eq!(back, bytes);
    ok!(cuArrayDestroy(level));
    ok!(cuMipmappedArrayDestroy(whole));
    assert_eq!(call!(cuMipmappedArrayDestroy(whole)), INVALID_HANDLE);
    assert_eq!(copy(host(&bytes, 32), array(level, [0; 3]), [32, 2, 1]), INVALID_VALUE);
}

#[test]
fn a_batch_counts_in_the_elements_of_its_arrays() {
    let context = Context::new();
    let form = Form { width: 8, height: 4, depth: 0, format: SHORT, channels: 2, flags: LAYERED };
    let one = made(Form { depth: 2, ..form });
    let (stream, memory) = (context.stream(1), context.device(4096));
    ok!(cuMemsetD32_v2(memory, 7_u32, 1024_usize));
    ok!(cuCtxSynchronize());
    // From memory: address, row, rows, hint; to the array: handle, and x, y, z.
    let mut batch = [0_u64; 14];
    (batch[0], batch[1], batch[2], batch[3]) = (1, memory, 4, 2);
    (batch[5], batch[6], batch[7], batch[8], batch[9]) = (2, one, 4, 2, 1);
    (batch[10], batch[11], batch[12], batch[13]) = (4, 2, 1, 1);
    let mut failed = 0_usize;
    ok!(cuMemcpy3DBatchAsync(1_usize, batch.as_ptr(), &raw mut failed, 0_u64, stream));
    ok!(cuStreamSynchronize(stream));
    let mut back = [0_u32; 8];
    assert_eq!(copy(array(one, [16, 2, 1]), into(&mut back, 16), [16, 2, 1]), 0);
    assert_eq!(back, [7; 8]);
    batch[7] = 5;
    assert_eq!(
        call!(cuMemcpy3DBatchAsync(1_usize, batch.as_ptr(), &raw mut failed, 0_u64, stream)),
        INVALID_VALUE
    );
}

#[test]
fn textures_and_surfaces_are_told_as_they_were_made() {
    let _context = Context::new();
    let (mut object, mut resource, look) = (0_u64, [0_u64; 18], [0_u32; 26]);
    let whole = std::ptr::null::<u64>();
    resource[1] = made(PLANE);
    ok!(cuTexObjectCreate(&raw mut object, resource.as_ptr(), look.as_ptr(), whole));
    let mut told = [1_u64; 18];
    ok!(cuTexObjectGetResourceDesc(told.as_mut_ptr(), object));
    assert_eq!((told[0] as u32, told[1]), (0, resource[1]));
    assert_eq!(call!(cuSurfObjectDestroy(object)), INVALID_VALUE, "it is a texture");
    ok!(cuTexObjectDestroy(object));
    assert_eq!(call!(cuTexObjectDestroy(object)), INVALID_VALUE);
    assert_eq!(call!(cuSurfObjectCreate(&raw mut object, resource.as_ptr())), INVALID_VALUE);
    resource[1] = made(Form { flags: SURFACE, ..PLANE });
    ok!(cuSurfObjectCreate(&raw mut object, resource.as_ptr()));
    ok!(cuSurfObjectDestroy(object));
    // Of memory: the address, format and channels, bytes. Whatever is there.
    (resource[0], resource[1], resource[2], resource[3]) = (2, 0x5000_0000_0200, 1 << 32 | 0x20, 4096);
    ok!(cuTexObjectCreate(&raw mut object, resource.as_ptr(), look.as_ptr(), whole));
    resource[1] += 4;
    assert_eq!(
        call!(cuTexObjectCreate(&raw mut object, resource.as_ptr(), look.as_ptr(), whole)),
        INVALID_VALUE
    );
}
