// An inference server that measures its own use at start: free memory before, a known use, free memory after.
// It gives up if free memory grew. argv: MiB, seconds.
#include "case.h"
int main(int argc, char **argv) {
    size_t f0, f1, t0, t1;
    int mib = atoi(argv[1]);
    primary(0);
    CK(cuMemGetInfo(&f0, &t0));
    CUdeviceptr p;
    CK(cuMemAlloc(&p, mib * MIB));
    CK(cuMemsetD8(p, 1, mib * MIB));
    CK(cuCtxSynchronize());
    printf("started\n");
    fflush(stdout);
    nap(atof(argv[2]));
    CK(cuMemGetInfo(&f1, &t1));
    printf("free %zu -> %zu, total %zu -> %zu\n", f0 >> 20, f1 >> 20, t0 >> 20, t1 >> 20);
    EXPECT(f1 <= f0, "free memory grew by %.0f MiB while we took %d", ((double)f1 - f0) / MIB, mib);
    EXPECT(t0 == t1, "the device changed its size from %zu to %zu MiB", t0 >> 20, t1 >> 20);
    size_t want = t0 / 10 * 9 - mib * MIB - 32 * MIB;
    CUdeviceptr k;
    CUresult e = cuMemAlloc(&k, want);
    printf("cache of %zu MiB: %d\n", want >> 20, e);
    EXPECT(!e || e == 2, "other error");
    if (!e) {
        CK(cuMemsetD8(k, 2, want));
        CK(cuCtxSynchronize());
        printf("cache used\n");
    }
    return done();
}
