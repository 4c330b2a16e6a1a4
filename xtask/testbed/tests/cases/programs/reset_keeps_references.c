// A reset of the primary context does not release its references: retain, retain, reset, retain needs three
// releases (seen on an H200). Memory that was allocated after the reset lives until the third.
#include "case.h"
static int active(void) {
    unsigned f;
    int a = -1;
    CK(cuDevicePrimaryCtxGetState(0, &f, &a));
    return a;
}
int main(void) {
    CUcontext c;
    primary(0);
    primary(0);
    CK(cuDevicePrimaryCtxReset(0));
    c = primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 64 * MIB));
    CK(cuMemsetD32(p, 0x1234, 16 * MIB));
    CK(cuCtxSynchronize());
    int needed = 0;
    while (active() && needed < 4) {
        CK(cuDevicePrimaryCtxRelease(0));
        needed++;
        if (active()) {
            unsigned v = 0;
            CK(cuCtxSetCurrent(c));
            CUresult e = cuMemcpyDtoH(&v, p, 4);
            EXPECT(!e && v == 0x1234, "after release %d the context lives and the copy answers %d, value %x",
                   needed, e, v);
        }
    }
    printf("%d releases\n", needed);
    EXPECT(needed == 3, "inactive after %d releases, an H200 needs 3", needed);
    return done();
}
