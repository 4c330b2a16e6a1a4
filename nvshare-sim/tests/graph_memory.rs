//! Memory of graphs: allocated when a graph is launched, freed by a node or from outside, kept in the pool until trimmed.

#![expect(unsafe_code, reason = "the end of a process, as a program may have it")]

mod client;

use client::{Context, DRIVER};

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NOT_SUPPORTED: u32 = 801;

const MIB: usize = 1 << 20;
/// Nothing to come after.
const NONE: *const u64 = std::ptr::null();

/// `CUDA_MEM_ALLOC_NODE_PARAMS`: eleven words of a pool's properties, grants and their number, bytes, the address.
fn parameters(bytes: usize) -> [u64; 15] {
    let mut parameters = [0_u64; 15];
    (parameters[0], parameters[1], parameters[13]) = (1, 1, bytes as u64);
    parameters
}

fn graph() -> u64 {
    let mut graph = 0_u64;
    ok!(cuGraphCreate(&raw mut graph, 0_u32));
    graph
}

/// Adds an allocation; the node and its address.
fn allocate(graph: u64, bytes: usize) -> (u64, u64) {
    let (mut node, mut parameters) = (0_u64, parameters(bytes));
    ok!(cuGraphAddMemAllocNode(&raw mut node, graph, NONE, 0_usize, parameters.as_mut_ptr()));
    (node, parameters[14])
}

/// Adds a free after another node; the call's result.
fn free_node(graph: u64, after: u64, address: u64) -> u32 {
    let mut node = 0_u64;
    let count = usize::from(after != 0);
    call!(cuGraphAddMemFreeNode(&raw mut node, graph, &raw const after, count, address))
}

/// Adds a memset of all bytes after another node; the node.
fn fill(context: &Context, graph: u64, after: u64, address: u64, bytes: usize) -> u64 {
    let mut node = 0_u64;
    let set = [address, 0, 5 | 1 << 32, bytes as u64, 1];
    ok!(cuGraphAddMemsetNode(&raw mut node, graph, &raw const after, 1_usize, set.as_ptr(), context.handle));
    node
}

fn instantiate(graph: u64, flags: u64) -> u64 {
    let mut executable = 0_u64;
    ok!(cuGraphInstantiateWithFlags(&raw mut executable, graph, flags));
    executable
}

/// Used and reserved of the pool, with the most of each, in MiB.
fn books() -> [u64; 4] {
    [0_u32, 1, 2, 3].map(|attribute| {
        let mut value = 0_u64;
        ok!(cuDeviceGetGraphMemAttribute(0_i32, attribute, &raw mut value));
        value >> 20
    })
}

fn fresh_books() -> [u64; 4] {
    ok!(cuDeviceGraphMemTrim(0_i32));
    let mut zero = 0_u64;
    for attribute in [1_u32, 3] {
        ok!(cuDeviceSetGraphMemAttribute(0_i32, attribute, &raw mut zero));
    }
    books()
}

fn card_free() -> usize {
    let (mut free, mut total) = (0_usize, 0_usize);
    ok!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
    free / MIB
}

fn first_byte(address: u64) -> (u32, u8) {
    let mut byte = 0_u8;
    (call!(cuMemcpyDtoH_v2(&raw mut byte, address, 1_usize)), byte)
}

#[test]
fn a_graph_takes_memory_when_it_is_launched_and_keeps_it_until_it_is_trimmed() {
    let context = Context::new();
    assert_eq!(fresh_books(), [0; 4]);
    let (before, stream) = (card_free(), context.stream(1));
    let made = graph();
    let (node, address) = allocate(made, 8 * MIB);
    let filled = fill(&context, made, node, address, 8 * MIB);
    assert_eq!(free_node(made, filled, address), 0);
    let executable = instantiate(made, 0);
    assert_eq!((card_free(), books()), (before, [0; 4]), "nothing is taken before the launch");
    for _ in 0..3 {
        ok!(cuGraphLaunch(executable, stream));
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!((card_free(), books()), (before - 8, [8, 8, 8, 8]));
    assert_eq!(call!(cuMemFree_v2(address)), INVALID_VALUE, "its own graph frees it");
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(made));
    assert_eq!((card_free(), books()), (before - 8, [8, 8, 8, 8]), "it is kept");
    assert_eq!(fresh_books(), [0; 4]);
    assert_eq!(card_free(), before);
    assert_eq!(DRIVER.violations(), [""; 0]);
}

#[test]
fn what_a_graph_leaves_allocated_is_freed_from_outside_before_it_is_launched_again() {
    let context = Context::new();
    let stream = context.stream(1);
    let made = graph();
    let (node, address) = allocate(made, 4 * MIB);
    fill(&context, made, node, address, 4 * MIB);
    let executable = instantiate(made, 0);
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(first_byte(address), (0, 5));
    assert_eq!(call!(cuGraphLaunch(executable, stream)), INVALID_VALUE);
    ok!(cuMemFreeAsync(address, stream));
    assert_eq!(call!(cuMemFreeAsync(address, stream)), INVALID_VALUE);
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuMemFree_v2(address));
    assert_eq!(call!(cuMemFree_v2(address)), INVALID_VALUE);

    // Another graph frees it, once a launch.
    let other = graph();
    assert_eq!(free_node(other, 0, address), 0);
    assert_eq!(free_node(other, 0, address), INVALID_VALUE, "twice in a graph");
    assert_eq!(free_node(made, node, address), INVALID_VALUE, "another graph frees it");
    assert_eq!(free_node(other, 0, context.device(64)), INVALID_VALUE, "no graph allocated it");
    let frees = instantiate(other, 0);
    assert_eq!(call!(cuGraphLaunch(frees, stream)), INVALID_VALUE, "it is not allocated");
    for _ in 0..2 {
        ok!(cuGraphLaunch(executable, stream));
        ok!(cuGraphLaunch(frees, stream));
    }
    ok!(cuStreamSynchronize(stream));
    for gone in [executable, frees] {
        ok!(cuGraphExecDestroy(gone));
    }
    for gone in [made, other] {
        ok!(cuGraphDestroy(gone));
    }
    assert_eq!(fresh_books(), [0; 4]);
    assert_eq!(DRIVER.violations(), [""; 0]);
}

#[test]
fn with_auto_free_it_is_launched_again_and_again() {
    let context = Context::new();
    let (stream, made) = (context.stream(1), graph());
    let (node, address) = allocate(made, 4 * MIB);
    fill(&context, made, node, address, 4 * MIB);
    let executable = instantiate(made, 1);
    for _ in 0..3 {
        ok!(cuGraphLaunch(executable, stream));
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!(first_byte(address), (0, 5));
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(made));
    assert_eq!(first_byte(address), (0, 5), "it lives until it is freed");
    ok!(cuMemFree_v2(address));
    assert_eq!(fresh_books(), [0; 4]);
}

#[test]
fn a_graph_with_memory_is_one_and_stays_as_it_is() {
    let _context = Context::new();
    let made = graph();
    let (node, address) = allocate(made, MIB);
    let (mut clone, mut child, parent) = (0_u64, 0_u64, graph());
    assert_eq!(call!(cuGraphClone(&raw mut clone, made)), NOT_SUPPORTED);
    assert_eq!(call!(cuGraphAddChildGraphNode(&raw mut child, parent, NONE, 0_usize, made)), NOT_SUPPORTED);
    assert_eq!(call!(cuGraphDestroyNode(node)), NOT_SUPPORTED);
    let executable = instantiate(made, 0);
    assert_eq!(call!(cuGraphInstantiateWithFlags(&raw mut clone, made, 0_u64)), NOT_SUPPORTED);
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphExecDestroy(instantiate(made, 0)));
    assert_eq!(call!(cuGraphInstantiateWithFlags(&raw mut clone, made, 5_u64)), INVALID_VALUE);

    let (mut kind, mut told, mut place) = (0_u32, [0_u64; 15], 0_u64);
    ok!(cuGraphNodeGetType(node, &raw mut kind));
    ok!(cuGraphMemAllocNodeGetParams(node, told.as_mut_ptr()));
    assert_eq!((kind, told[13], told[14]), (10, MIB as u64, address));
    assert_eq!(call!(cuGraphMemFreeNodeGetParams(node, &raw mut place)), INVALID_VALUE);
    ok!(cuGraphDestroy(made));
}

#[test]
fn allocations_that_cannot_be_are_refused_when_the_node_is_made() {
    let _context = Context::new();
    let made = graph();
    let refused = |change: fn(&mut [u64; 15])| {
        let (mut node, mut parameters) = (0_u64, parameters(MIB));
        change(&mut parameters);
        call!(cuGraphAddMemAllocNode(&raw mut node, made, NONE, 0_usize, parameters.as_mut_ptr()))
    };
    assert_eq!(refused(|_| ()), 0);
    assert_eq!(refused(|parameters| parameters[13] = 0), INVALID_VALUE);
    assert_eq!(refused(|parameters| parameters[0] = 2), INVALID_VALUE);
    assert_eq!(refused(|parameters| parameters[0] |= 1 << 32), INVALID_VALUE, "no handle types");
    assert_eq!(refused(|parameters| parameters[1] = 2), INVALID_VALUE);
    assert_eq!(refused(|parameters| parameters[1] |= 77 << 32), INVALID_VALUE);
    assert_eq!(refused(|parameters| parameters[12] = 77), INVALID_VALUE);
    ok!(cuGraphDestroy(made));
    let mut value = 1_u64;
    assert_eq!(call!(cuDeviceGetGraphMemAttribute(0_i32, 4_u32, &raw mut value)), INVALID_VALUE);
    assert_eq!(call!(cuDeviceSetGraphMemAttribute(0_i32, 1_u32, &raw mut value)), INVALID_VALUE);
    value = 0;
    assert_eq!(call!(cuDeviceSetGraphMemAttribute(0_i32, 0_u32, &raw mut value)), INVALID_VALUE);
}

#[test]
fn nodes_of_any_kind_allocate_and_free() {
    let context = Context::new();
    let made = graph();
    let (mut node, mut free) = (0_u64, 0_u64);
    let mut any = [0_u64; 32];
    any[0] = 10;
    any[2..17].copy_from_slice(&parameters(2 * MIB));
    ok!(cuGraphAddNode_v2(&raw mut node, made, NONE, NONE, 0_usize, any.as_mut_ptr()));
    let address = any[16];
    let mut any = [0_u64; 32];
    (any[0], any[2]) = (11, address);
    ok!(cuGraphAddNode_v2(&raw mut free, made, &raw const node, NONE, 1_usize, any.as_mut_ptr()));
    assert_eq!(call!(cuGraphNodeSetParams(free, any.as_mut_ptr())), INVALID_VALUE);
    let executable = instantiate(made, 0);
    ok!(cuGraphLaunch(executable, context.stream(1)));
    ok!(cuCtxSynchronize());
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(made));
    assert_eq!(fresh_books(), [0; 4]);
}

#[test]
fn captured_allocations_are_nodes_of_the_graph() {
    let context = Context::new();
    let (stream, other) = (context.stream(1), context.stream(1));
    let (mut inside, mut outside, mut pooled) = (0_u64, 0_u64, 0_u64);
    ok!(cuMemAllocAsync(&raw mut pooled, 64_usize, other));
    ok!(cuStreamBeginCapture_v2(stream, 2_u32));
    ok!(cuMemAllocAsync(&raw mut inside, 3 * MIB, stream));
    ok!(cuMemsetD8Async(inside, 6_u8, 3 * MIB, stream));
    ok!(cuMemAllocAsync(&raw mut outside, 3 * MIB, stream));
    ok!(cuMemcpyDtoDAsync_v2(outside, inside, 3 * MIB, stream));
    ok!(cuMemFreeAsync(inside, stream));
    assert_eq!(call!(cuMemFreeAsync(inside, stream)), INVALID_VALUE, "once");
    assert_eq!(call!(cuMemFreeAsync(pooled, stream)), INVALID_VALUE, "no graph allocated it");
    let mut made = 0_u64;
    ok!(cuStreamEndCapture(stream, &raw mut made));
    let mut count = 0_usize;
    ok!(cuGraphGetNodes(made, 0_u64, &raw mut count));
    assert_eq!(count, 5);
    let executable = instantiate(made, 0);
    ok!(cuGraphLaunch(executable, other));
    ok!(cuStreamSynchronize(other));
    assert_eq!(first_byte(outside), (0, 6));
    ok!(cuStreamBeginCapture_v2(stream, 2_u32));
    assert_eq!(call!(cuGraphLaunch(executable, stream)), 900, "it would be a child graph");
    let mut frees = 0_u64;
    assert_eq!(call!(cuStreamEndCapture(stream, &raw mut frees)), 901);
    ok!(cuStreamBeginCapture_v2(stream, 2_u32));
    ok!(cuMemFreeAsync(outside, stream));
    ok!(cuStreamEndCapture(stream, &raw mut frees));
    ok!(cuGraphLaunch(instantiate(frees, 0), other));
    ok!(cuStreamSynchronize(other));
    assert_eq!(call!(cuMemFree_v2(outside)), INVALID_VALUE, "it was freed");
    assert_eq!(DRIVER.violations(), [""; 0]);
}

#[test]
fn a_launch_for_which_there_is_no_memory_is_refused_and_may_come_again() {
    if !client::is_alone() {
        let name = "a_launch_for_which_there_is_no_memory_is_refused_and_may_come_again";
        client::alone(name, &[("NVSHARE_SIM_CARD_BYTES", "64M"), ("NVSHARE_SIM_CONTEXT_BYTES", "4M")]);
        return;
    }
    let context = Context::new();
    let (stream, made, before) = (context.stream(1), graph(), card_free());
    let (node, address) = allocate(made, before * MIB / 2);
    assert_eq!(free_node(made, node, address), 0);
    let executable = instantiate(made, 0);
    let taken = context.device(before * MIB / 4 * 3);
    assert_eq!(call!(cuGraphLaunch(executable, stream)), OUT_OF_MEMORY);
    ok!(cuMemFree_v2(taken));
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(made));
    assert_eq!(fresh_books(), [0; 4]);
}

#[test]
fn memory_of_a_graph_that_is_used_outside_its_time_is_a_violation() {
    if !client::is_alone() {
        let told = client::alone("memory_of_a_graph_that_is_used_outside_its_time_is_a_violation", &[]);
        assert!(told.contains("reported"), "{told}");
        return;
    }
    let context = Context::new();
    let made = graph();
    let (_, address) = allocate(made, MIB);
    let executable = instantiate(made, 0);
    ok!(cuGraphLaunch(executable, context.stream(1)));
    ok!(cuMemFree_v2(address));
    assert_eq!(first_byte(address).0, 700);
    let said = DRIVER.violations();
    assert!(said.iter().any(|line| line.contains("a graph's, and not allocated")), "{said:?}");
    eprintln!("reported");
    // SAFETY: the context has failed and cannot be ended in order.
    unsafe { libc::_exit(0) };
}

/// A graph that allocates, fills and frees.
fn whole(context: &Context, bytes: usize) -> (u64, u64) {
    let made = graph();
    let (node, address) = allocate(made, bytes);
    let filled = fill(context, made, node, address, bytes);
    assert_eq!(free_node(made, filled, address), 0);
    (made, instantiate(made, 0))
}

#[test]
fn graphs_launched_one_after_the_other_share_memory_and_at_once_they_do_not() {
    let context = Context::new();
    let streams = [context.stream(1), context.stream(1)];
    assert_eq!(fresh_books(), [0; 4]);
    let graphs = [whole(&context, 8 * MIB), whole(&context, 8 * MIB)];
    for (_, executable) in graphs {
        ok!(cuGraphLaunch(executable, streams[0]));
        ok!(cuStreamSynchronize(streams[0]));
        assert_eq!(books(), [8; 4]);
    }
    for ((_, executable), stream) in graphs.into_iter().zip(streams) {
        assert_eq!(context.launch(stream, "nvshare_spin", &[50_000_000]), 0);
        ok!(cuGraphLaunch(executable, stream));
    }
    assert_eq!(books(), [16; 4]);
    ok!(cuCtxSynchronize());
    // A twin takes over, with memory of its own.
    let (twin, unused) = whole(&context, 8 * MIB);
    let mut told = [9_u64; 3];
    ok!(cuGraphExecUpdate_v2(graphs[0].1, twin, told.as_mut_ptr()));
    assert_eq!(told[0], 0);
    ok!(cuGraphLaunch(graphs[0].1, streams[0]));
    ok!(cuCtxSynchronize());
    let (larger, too) = whole(&context, 16 * MIB);
    assert_eq!(call!(cuGraphExecUpdate_v2(graphs[0].1, larger, told.as_mut_ptr())), 910);
    for executable in [graphs[0].1, graphs[1].1, unused, too] {
        ok!(cuGraphExecDestroy(executable));
    }
    for graph in [graphs[0].0, graphs[1].0, twin, larger] {
        ok!(cuGraphDestroy(graph));
    }
    assert_eq!(books(), [16; 4], "their end gives nothing back");
    assert_eq!(fresh_books(), [0; 4]);
    assert_eq!(DRIVER.violations(), [""; 0]);
}

#[test]
fn memory_of_graphs_stays_after_the_last_context_until_it_is_trimmed() {
    if !client::is_alone() {
        client::alone("memory_of_graphs_stays_after_the_last_context_until_it_is_trimmed", &[]);
        return;
    }
    let context = Context::new();
    let made = graph();
    allocate(made, 4 * MIB);
    let executable = instantiate(made, 0);
    ok!(cuGraphLaunch(executable, context.stream(1)));
    assert_eq!(books()[2], 4);
    drop(context);
    assert_eq!(books(), [4; 4]);
    let _again = Context::new();
    assert_eq!(books(), [4; 4]);
    assert_eq!(fresh_books(), [0; 4]);
}
