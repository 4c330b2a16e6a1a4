// Memory is freed behind work that still runs, and the device is reset. The context has the same handle afterwards, and the
// program's new events may have the handles of events that the library made before: these are the program's alone.
#include "case.h"
int main(void) {
    primary(0);
    for (int round = 0; round < 20; round++) {
        CUfunction spins;
        CUmodule module;
        CUcontext c;
        CK(cuModuleLoadData(&module, PTX));
        CK(cuModuleGetFunction(&spins, module, "nvshare_spin"));
        CUdeviceptr p[16];
        for (int i = 0; i < 16; i++) CK(cuMemAlloc(&p[i], 64 << 10));
        LAUNCH1(spins, 0, 20000000);
        for (int i = 0; i < 16; i++) CK(cuMemFreeAsync(p[i], 0));
        CK(cuDevicePrimaryCtxReset(0));
        CK(cuDevicePrimaryCtxRetain(&c, 0));
        CK(cuCtxSetCurrent(c));
        CUevent mine[64];
        for (int i = 0; i < 64; i++) CK(cuEventCreate(&mine[i], 2));
        CUdeviceptr q;
        CK(cuMemAlloc(&q, 64 << 10));
        nap(0.02);
        for (int i = 0; i < 64; i++) {
            CUresult r = cuEventQuery(mine[i]);
            EXPECT(!r, "round %d: event %d of the program answers %d", round, i, r);
        }
        CK(cuMemFree(q));
    }
    return done();
}
