// After an illegal address a reset succeeds and mends nothing: no context is to be had any more, and the program ends in order.
#include "case.h"
int main(void) {
    CUcontext c;
    CUdeviceptr p;
    CUresult e;
    primary(0);
    CK(cuMemAlloc(&p, 64 * MIB));
    launched(kernel("nvshare_fill"), 0, 0x10, 8, 1, 0, 0, 0);
    e = cuCtxSynchronize();
    EXPECT(e == 700, "the error is %d", e);
    e = cuMemFree(p);
    EXPECT(e == 700, "a free after it answers %d", e);
    CK(cuDevicePrimaryCtxReset(0));
    for (int i = 0; i < 2; i++) {
        e = cuDevicePrimaryCtxRetain(&c, 0);
        EXPECT(e == 700, "a retain after the reset answers %d", e);
        e = cuCtxCreate(&c, 0, 0);
        EXPECT(e == 700, "a new context after the reset answers %d", e);
        e = cuMemAlloc(&p, MIB);
        EXPECT(e, "an allocation after the reset succeeds");
    }
    return done();
}
