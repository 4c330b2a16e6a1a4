// The driver refuses cuCtxDestroy of the primary context (201): its memory is still there afterwards.
#include "case.h"
int main(void) {
    CUcontext c = primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 64 * MIB));
    CK(cuMemsetD32(p, 0x1234, 16 * MIB));
    CK(cuCtxSynchronize());
    CUresult e = cuCtxDestroy(c);
    unsigned v = 0;
    printf("cuCtxDestroy %d\n", e);
    EXPECT(e, "the driver let the primary context be destroyed");
    e = cuMemcpyDtoH(&v, p, 4);
    EXPECT(!e && v == 0x1234, "cuMemcpyDtoH %d, value %x: the bytes are lost", e, v);
    return done();
}
