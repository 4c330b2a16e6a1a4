// A kernel on device 1 waits for what this thread does after it freed memory of device 0 ("free") or ended a
// context of device 0 ("context"). Bare neither waits for device 1. With "time" the kernel only spins for 2
// s.
#include "case.h"
int main(int argc, char **argv) {
    CK(cuInit(0));
    CUcontext c0, c1;
    CK(cuCtxCreate(&c0, 0, 0));
    CK(cuCtxCreate(&c1, 0, 1));
    CK(cuCtxSetCurrent(c1));
    CUstream s;
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CUfunction waits = kernel("nvshare_wait_flag"), spins = kernel("nvshare_spin");
    Flag flag = new_flag();
    CK(cuCtxSetCurrent(c0));
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 4 * MIB));
    CK(cuMemsetD8(p, 1, 4 * MIB));
    CK(cuCtxSynchronize());
    CK(cuCtxSetCurrent(c1));
    if (!strcmp(argv[1], "time"))
        LAUNCH1(spins, s, 2000000000);
    else
        LAUNCH1(waits, s, flag.device);
    CK(cuCtxSetCurrent(c0));
    double t = now();
    if (!strcmp(argv[1], "context"))
        CK(cuCtxDestroy(c0));
    else
        CK(cuMemFree(p));
    t = now() - t;
    printf("took %.3f s\n", t);
    fflush(stdout);
    EXPECT(t < 1, "it waited for the other device");
    *flag.host = 1;
    CK(cuCtxSetCurrent(c1));
    CK(cuCtxSynchronize());
    return done();
}
