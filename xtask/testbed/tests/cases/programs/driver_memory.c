// Memory that the driver itself makes. "fill N S": holds N MiB for S seconds and works on them; "late N S": does so once
// it is told, by a line, has made its context before, and rests until it is told again. "plain N",
// "pool N", "vmm N": takes N MiB by cuMemAlloc, cuMemAllocAsync, cuMemCreate while the other one holds the
// card: all three must wait for room and succeed.
#include "case.h"
int main(int argc, char **argv) {
    primary(0);
    size_t n = (size_t)atol(argv[2]) << 20;
    CUdeviceptr p;
    double t = now();
    CUresult e;
    char line[8];
    if (!strcmp(argv[1], "late")) {
        puts("context");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) return 3;
        t = now();
    }
    if (!strcmp(argv[1], "fill") || !strcmp(argv[1], "late")) {
        CK(cuMemAlloc(&p, n));
        puts("ready");
        fflush(stdout);
        for (int i = 0; now() - t < atof(argv[3]); i++) {
            CK(cuMemsetD8(p, i, n));
            CK(cuCtxSynchronize());
            nap(0.2);
        }
        if (!strcmp(argv[1], "late")) {
            puts("rests");
            fflush(stdout);
            if (!fgets(line, sizeof line, stdin)) return 3;
        }
        return 0;
    }
    if (!strcmp(argv[1], "plain"))
        e = cuMemAlloc(&p, n);
    else if (!strcmp(argv[1], "pool"))
        e = cuMemAllocAsync(&p, n, 0);
    else {
        CUmemAllocationProp of = on_device(0);
        CUmemGenericAllocationHandle h;
        e = cuMemCreate(&h, n, &of, 0);
    }
    printf("%s: %d after %.2f s\n", argv[1], e, now() - t);
    EXPECT(!e, "no memory, although others could have made room");
    return done();
}
