// Contexts that end with managed ("managed") memory in them give it back. Stream-ordered memory ("pool") outlives its context, and is
// given back when it is freed in the next one.
#include "case.h"
int main(int argc, char **argv) {
    int pool = !strcmp(argv[1], "pool");
    CK(cuInit(0));
    size_t first = 0;
    CUdeviceptr p = 0;
    for (int i = 0; i < 5; i++) {
        CUcontext c;
        CK(cuCtxCreate(&c, 0, 0));
        size_t f = free_mib();
        if (!i) first = f;
        if (pool && p) {
            EXPECT(f + 256 - 64 < first, "round %d: free %zu MiB, at first %zu", i, f, first);
            CK(cuMemsetD8(p, i, 256 * MIB));
            CK(cuMemFreeAsync(p, 0));
            CK(cuStreamSynchronize(0));
            f = free_mib();
        }
        EXPECT(f + 64 > first, "round %d: free %zu MiB, at first %zu", i, f, first);
        CUresult e = pool ? cuMemAllocAsync(&p, 256 * MIB, 0) : cuMemAllocManaged(&p, 256 * MIB, CU_MEM_ATTACH_GLOBAL);
        EXPECT(!e, "round %d: %d", i, e);
        if (e) break;
        CK(cuCtxSynchronize());
        CK(cuCtxDestroy(c));
    }
    return done();
}
