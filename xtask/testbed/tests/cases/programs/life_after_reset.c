// After an illegal address the program resets the device and goes on; what it frees must be released.
#include "case.h"
int main(void) {
    primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 64 * MIB));
    launched(kernel("nvshare_fill"), 0, 0x10, 8, 1, 0, 0, 0);
    printf("error %d\n", cuCtxSynchronize());
    CK(cuDevicePrimaryCtxReset(0));
    primary(0);
    for (int i = 0; i < 5; i++) {
        CUresult e = cuMemAlloc(&p, 300 * MIB);
        EXPECT(!e, "round %d: cuMemAlloc of 300 MiB answers %d", i, e);
        if (e) break;
        CK(cuMemsetD8(p, 1, 300 * MIB));
        CK(cuCtxSynchronize());
        CK(cuMemFree(p));
    }
    return done();
}
