// Pairs of allocation and free beside an agent; the test counts the messages to it. messages_per_allocation PAIRS ordered|plain|mapped:
// in the order of a stream, plain memory, memory that the program maps itself.
#include "case.h"
static CUstream s;
static void ordered(void) {
    CUdeviceptr p;
    CK(cuMemAllocAsync(&p, MIB, s));
    CK(cuMemFreeAsync(p, s));
}
static void plain(void) {
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 4 * MIB));
    CK(cuMemFree(p));
}
static void mapped(void) {
    static CUdeviceptr at;
    CUmemAllocationProp what = on_device(0);
    CUmemAccessDesc who = {.location = what.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle h;
    if (!at) CK(cuMemAddressReserve(&at, 4 * MIB, 0, 0, 0));
    CK(cuMemCreate(&h, 4 * MIB, &what, 0));
    CK(cuMemMap(at, 4 * MIB, 0, h, 0));
    CK(cuMemSetAccess(at, 4 * MIB, &who, 1));
    CK(cuMemUnmap(at, 4 * MIB));
    CK(cuMemRelease(h));
}
int main(int argc, char **argv) {
    primary(0);
    CUdeviceptr q;
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CK(cuMemAlloc(&q, 4 * MIB));
    int n = atoi(argv[1]);
    void (*pair)(void) = argv[2][0] == 'o' ? ordered : argv[2][0] == 'p' ? plain : mapped;
    double t = now();
    for (int i = 0; i < n; i++) {
        pair();
        if (i % 64 == 63) CK(cuStreamSynchronize(s));
    }
    printf("%.2f us a pair\n", (now() - t) / n * 1e6);
    nap(0.5);
    return done();
}
