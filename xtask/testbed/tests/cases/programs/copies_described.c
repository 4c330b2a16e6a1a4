// Two devices, no peer access enabled. Copies from device 0's memory to device 1's, in a context of device 0, in each of the
// forms that describe a copy in a structure: copies_described FORM.
#include "case.h"
#define WORDS (2 * MIB / 4)
static CUcontext c0, c1;
static CUdeviceptr p, q;
static CUDA_MEMCPY3D copy(CUdeviceptr to, CUdeviceptr from) {
    CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                       .srcDevice = from,
                       .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                       .dstDevice = to,
                       .WidthInBytes = 2 * MIB,
                       .Height = 1,
                       .Depth = 1};
    return c;
}
static CUgraphNodeParams any(CUdeviceptr to, CUdeviceptr from, CUcontext in) {
    CUgraphNodeParams n = {.type = CU_GRAPH_NODE_TYPE_MEMCPY};
    n.memcpy.copyCtx = in;
    n.memcpy.copyParams = copy(to, from);
    return n;
}
static void by_graph(const char *form, CUstream s) {
    CUgraph g;
    CUgraphNode n;
    CUgraphExec x = NULL;
    CUDA_MEMCPY3D within = copy(p + 2 * MIB, p), across = copy(q, p);
    CUgraphNodeParams any_within = any(p + 2 * MIB, p, c0), any_across = any(q, p, c0);
    CK(cuGraphCreate(&g, 0));
    if (!strcmp(form, "add"))
        CK(cuGraphAddMemcpyNode(&n, g, NULL, 0, &across, c0));
    else if (!strcmp(form, "add_any"))
        CK(cuGraphAddNode(&n, g, NULL, 0, &any_across));
    else if (!strcmp(form, "add_any_v2"))
        CK(cuGraphAddNode_v2(&n, g, NULL, NULL, 0, &any_across));
    else
        CK(cuGraphAddMemcpyNode(&n, g, NULL, 0, &within, c0));
    if (!strcmp(form, "set_elsewhere")) // the node stays in the context that it was added with
        CK(cuCtxSetCurrent(c1));
    if (!strcmp(form, "set") || !strcmp(form, "set_elsewhere"))
        CK(cuGraphMemcpyNodeSetParams(n, &across));
    else if (!strcmp(form, "set_any"))
        CK(cuGraphNodeSetParams(n, &any_across));
    else if (!strcmp(form, "set_any_v2"))
        CK(cuGraphNodeSetParams_v2(n, &any_across));
    CK(cuCtxSetCurrent(c0));
    CK(cuGraphInstantiateWithFlags(&x, g, 0));
    if (!strcmp(form, "set_ready"))
        CK(cuGraphExecMemcpyNodeSetParams(x, n, &across, c0));
    else if (!strcmp(form, "set_ready_any")) {
        CK(cuGraphExecNodeSetParams(x, n, &any_within));
        CK(cuGraphExecNodeSetParams(x, n, &any_across));
    }
    CK(cuGraphLaunch(x, s));
}
static int by_attributes(const char *form, CUstream s) {
    CUmemcpyAttributes a = {.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    CUDA_MEMCPY3D_BATCH_OP op = {.src = {CU_MEMCPY_OPERAND_TYPE_POINTER, p},
                                 .dst = {CU_MEMCPY_OPERAND_TYPE_POINTER, q},
                                 .width = 2 * MIB,
                                 .height = 1,
                                 .depth = 1,
                                 .srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    unsigned *host;
    if (!strcmp(form, "row"))
        CK(cuMemcpyWithAttributesAsync(q, p, 2 * MIB, &a, s));
    else if (!strcmp(form, "box"))
        CK(cuMemcpy3DWithAttributesAsync(&op, 0, s));
    else if (!strcmp(form, "row_taken") || !strcmp(form, "box_taken")) {
        // The source is the caller's again when the call returns, although the stream is not done yet.
        a.srcAccessOrder = op.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
        CK(cuMemHostAlloc((void **)&host, 2 * MIB, CU_MEMHOSTALLOC_PORTABLE));
        for (int i = 0; i < WORDS; i++) host[i] = 0x1234;
        op.src.ptr = (CUdeviceptr)(uintptr_t)host;
        LAUNCH1(kernel("nvshare_spin"), s, 30000000);
        if (!strcmp(form, "row_taken"))
            CK(cuMemcpyWithAttributesAsync(q, op.src.ptr, 2 * MIB, &a, s));
        else
            CK(cuMemcpy3DWithAttributesAsync(&op, 0, s));
        memset(host, 0xff, 2 * MIB);
    } else
        return 0;
    return 1;
}
int main(int argc, char **argv) {
    static unsigned words[WORDS];
    CUstream s;
    c0 = primary(0);
    c1 = primary(1);
    CK(cuMemAlloc(&q, 2 * MIB));
    CK(cuMemsetD32(q, 0, WORDS));
    CK(cuCtxSynchronize());
    CK(cuCtxSetCurrent(c0));
    CK(cuMemAlloc(&p, 4 * MIB));
    CK(cuMemsetD32(p, 0x1234, WORDS));
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CK(cuCtxSynchronize());
    nap(0.1);
    if (!by_attributes(argv[1], s)) by_graph(argv[1], s);
    CK(cuStreamSynchronize(s));
    CK(cuCtxSetCurrent(c1));
    CK(cuMemcpyDtoH(words, q, 2 * MIB));
    int bad = 0;
    for (int i = 0; i < WORDS; i++) bad += words[i] != 0x1234;
    EXPECT(!bad, "%d of %llu words are wrong", bad, WORDS);
    return done();
}
