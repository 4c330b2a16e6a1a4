// Two devices, and an error on the second one that no call of the process survives, on the first one neither, and that no reset
// mends. The program ends in order.
// error_on_one_card [swapped]: this process orders forced swaps of itself, also while the error is there.
#include "swaps.h"
#define BYTES (16 * MIB)
static CUfunction f_fill, f_verify;
static CUdeviceptr result;
static void load(void) {
    CUmodule m;
    CK(cuModuleLoadData(&m, PTX));
    CK(cuModuleGetFunction(&f_fill, m, "nvshare_fill"));
    CK(cuModuleGetFunction(&f_verify, m, "nvshare_verify"));
    CK(cuMemAlloc(&result, 4096));
}
static void filled(CUdeviceptr p, uint64_t seed) { CK(launched(f_fill, 0, p, BYTES / 8, seed, 0, 0, 0)); }
static void holds(CUdeviceptr p, uint64_t seed) {
    uint64_t n = 0;
    CK(cuMemsetD8(result, 0, 8));
    CK(launched(f_verify, 0, p, BYTES / 8, seed, 0, 0, result));
    CK(cuMemcpyDtoH(&n, result, 8));
    EXPECT(!n, "%lu words of seed %lu are wrong", (unsigned long)n, (unsigned long)seed);
}
int main(int argc, char **argv) {
    order_swaps(argc > 1, argv);
    CUcontext c0 = primary(0), c1 = primary(1);
    CUdeviceptr p, q, r;
    CUresult e;
    load();
    CK(cuMemAlloc(&q, BYTES));
    filled(q, 1);
    holds(q, 1);
    CUfunction fill_there = f_fill;
    CK(cuCtxSetCurrent(c0));
    load();
    CK(cuMemAlloc(&p, BYTES));
    filled(p, 2);
    EXPECT(swapped(), "nothing moved before the error");
    holds(p, 2);

    CK(cuCtxSetCurrent(c1));
    e = launched(fill_there, 0, 4096, 512, 3, 0, 0, 0);
    EXPECT(!e || e == 700, "the launch that goes wrong: %d", e);
    e = cuCtxSynchronize();
    EXPECT(e == 700, "after it %d", e);
    e = cuMemcpyDtoH(&e, q, 4);
    EXPECT(e == 700, "a copy from there: %d", e);

    CK(cuCtxSetCurrent(c0));
    for (int round = 0; round < 3; round++) {
        swapped();
        e = cuCtxSynchronize();
        EXPECT(e == 700, "the other card's context answers %d", e);
        e = launched(f_fill, 0, p, 512, 3, 0, 0, 0);
        EXPECT(e == 700, "a launch there %d", e);
        e = cuMemcpyDtoH(&e, p, 4);
        EXPECT(e == 700, "a copy from there %d", e);
        e = cuMemAlloc(&r, 100 * MIB);
        EXPECT(e == 700, "an allocation there %d", e);
        e = cuMemFree(p);
        EXPECT(e == 700, "a free there %d", e);
    }
    for (int device = 1; device >= 0; device--) {
        CUcontext c;
        CK(cuDevicePrimaryCtxReset(device));
        swapped();
        e = cuDevicePrimaryCtxRetain(&c, device);
        EXPECT(e == 700, "a retain after the reset %d", e);
        e = cuCtxCreate(&c, 0, device);
        EXPECT(e == 700, "a new context %d", e);
    }
    return done();
}
