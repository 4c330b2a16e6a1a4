// Graphs with allocation nodes, never launched, destroyed: nothing of them is held.
#include "case.h"
int main(void) {
    primary(0);
    size_t before = free_mib(), after = before;
    for (int i = 0; i < 12; i++) {
        CUgraph g;
        CUgraphNode n;
        CK(cuGraphCreate(&g, 0));
        CUDA_MEM_ALLOC_NODE_PARAMS p = {.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                      .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
                                        .bytesize = (64 + i) * MIB};
        CUresult e = cuGraphAddMemAllocNode(&n, g, 0, 0, &p);
        EXPECT(!e, "graph %d: %d", i, e);
        if (e) break;
        CK(cuGraphDestroy(g));
        after = free_mib();
    }
    CUdeviceptr q;
    CUresult e = cuMemAlloc(&q, 64 * MIB);
    printf("free %zu -> %zu MiB, cuMemAlloc of 64 MiB: %d\n", before, after, e);
    EXPECT(!e && after + 64 > before, "destroyed graphs hold memory");
    return done();
}
