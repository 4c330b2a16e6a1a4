// A kernel on device 1 waits for what this thread does after it freed memory of device 0 ("free"), which bare does not wait for
// device 1. With "time" the kernel only spins for 2 s. With "context" too, and a context of device 0 is ended, which waits for
// all work of the process.
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
    if (strcmp(argv[1], "free"))
        LAUNCH1(spins, s, 2000000000);
    else
        LAUNCH1(waits, s, flag.device);
    CK(cuCtxSetCurrent(c0));
    double t = now();
    int ends = !strcmp(argv[1], "context");
    if (ends)
        CK(cuCtxDestroy(c0));
    else
        CK(cuMemFree(p));
    t = now() - t;
    printf("took %.3f s\n", t);
    fflush(stdout);
    EXPECT(ends ? t > 1.5 : t < 1, "it %s for the other device", ends ? "did not wait" : "waited");
    *flag.host = 1;
    CK(cuCtxSetCurrent(c1));
    CK(cuCtxSynchronize());
    return done();
}
