// Two devices, no peer access. "copy": from device 0's memory to device 1's by the plain forms. "other":
// copies and a memset of device 1's memory while a context of device 0 is current. Bare the driver carries
// all of it.
#include "case.h"
int main(int argc, char **argv) {
    CUcontext c0 = primary(0), c1 = primary(1);
    CUdeviceptr p, q;
    unsigned v = 0;
    CUresult e;
    CK(cuMemAlloc(&q, 4 * MIB));
    CK(cuMemsetD32(q, 0, MIB));
    CK(cuCtxSynchronize());
    CK(cuCtxSetCurrent(c0));
    CK(cuMemAlloc(&p, 4 * MIB));
    CK(cuMemsetD32(p, 0x1234, MIB));
    CK(cuCtxSynchronize());
    if (!strcmp(argv[1], "copy")) {
        e = cuMemcpyDtoDAsync(q, p, 4 * MIB, 0);
        EXPECT(!e, "cuMemcpyDtoDAsync %d", e);
        e = cuCtxSynchronize();
        EXPECT(!e, "after it %d", e);
        e = cuMemcpyDtoH(&v, q, 4);
        EXPECT(!e && v == 0x1234, "cuMemcpyDtoH %d, value %x", e, v);
        e = cuMemcpyPeerAsync(q, c1, p, c0, 4 * MIB, 0);
        EXPECT(!e, "cuMemcpyPeerAsync %d", e);
        e = cuCtxSynchronize();
        EXPECT(!e, "after it %d", e);
    } else {
        v = 0x55;
        e = cuMemcpyHtoD(q, &v, 4);
        EXPECT(!e, "cuMemcpyHtoD %d", e);
        v = 0;
        e = cuMemcpyDtoH(&v, q, 4);
        EXPECT(!e && v == 0x55, "cuMemcpyDtoH %d, value %x", e, v);
        // Of memory of another card a driver refuses it (seen on an H200).
        CK(cuCtxSetCurrent(c1));
        e = cuMemsetD32(q, 7, 4);
        EXPECT(!e, "cuMemsetD32 %d", e);
        e = cuCtxSynchronize();
        EXPECT(!e, "after it %d", e);
    }
    return done();
}
