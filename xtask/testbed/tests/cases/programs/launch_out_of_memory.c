// One launch finds no memory (lazy loading, local memory) although the agent could make room:
// NVSHARE_SIM_FAULTS=launch:4=oom. It is tried again.
#include "case.h"
int main(void) {
    primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 4 * MIB));
    CUfunction f = kernel("nvshare_spin");
    for (int i = 0; i < 8; i++) {
        CUresult e = launched(f, 0, 1000, 0, 0, 0, 0, 0);
        EXPECT(!e, "launch %d: %d", i, e);
    }
    CK(cuCtxSynchronize());
    return done();
}
