// Two devices, and an error on the second one that no call there survives. The first one goes on as if nothing was: work,
// allocations, frees that give memory back. After a reset of the second, both do.
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
    holds(p, 2);
    for (int round = 0; round < 8; round++) {
        swapped();
        CK(cuMemAlloc(&r, 100 * MIB));
        filled(r, 10 + round);
        filled(p, 20 + round);
        holds(r, 10 + round);
        holds(p, 20 + round);
        CK(cuMemFree(r));
    }
    CK(cuDevicePrimaryCtxReset(1));
    holds(p, 27);
    EXPECT(swapped(), "nothing moves after the reset");
    holds(p, 27);
    CUdeviceptr result_here = result;
    CUfunction verify_here = f_verify;
    CK(cuDevicePrimaryCtxRetain(&c1, 1));
    CK(cuCtxSetCurrent(c1));
    load();
    for (int round = 0; round < 4; round++) {
        CK(cuMemAlloc(&r, 100 * MIB));
        filled(r, 30 + round);
        EXPECT(swapped(), "nothing moves on both");
        holds(r, 30 + round);
        CK(cuMemFree(r));
    }
    CK(cuCtxSetCurrent(c0));
    (result = result_here), (f_verify = verify_here);
    holds(p, 27);
    return done();
}
