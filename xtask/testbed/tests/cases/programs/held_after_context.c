// Contexts that end with managed ("managed") or stream-ordered ("pool") memory in them give it back.
#include "case.h"
int main(int argc, char **argv) {
    CK(cuInit(0));
    size_t first = 0;
    for (int i = 0; i < 5; i++) {
        CUcontext c;
        CUdeviceptr p;
        CK(cuCtxCreate(&c, 0, 0));
        size_t f = free_mib();
        if (!i) first = f;
        EXPECT(f + 64 > first, "round %d: free %zu MiB, at first %zu", i, f, first);
        CUresult e = !strcmp(argv[1], "managed") ? cuMemAllocManaged(&p, 256 * MIB, CU_MEM_ATTACH_GLOBAL)
                                                 : cuMemAllocAsync(&p, 256 * MIB, 0);
        EXPECT(!e, "round %d: %d", i, e);
        if (e) break;
        CK(cuCtxSynchronize());
        CK(cuCtxDestroy(c));
    }
    return done();
}
