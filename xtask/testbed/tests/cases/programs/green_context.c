// A green context: a part of the device with streams of its own in the primary context, which it keeps. Under its work,
// over the primary's release, and over its own end (which waits for nothing) every byte stays what it was.
// green_context MEMORY [swapped]: MEMORY says under which of the two the memory is allocated, `primary` or `green`;
// `swapped`: this process orders forced swaps of itself, and expects them to be carried out, or not, as is said below.
#include "swaps.h"
#define BYTES (8 * MIB)
static CUfunction f_fill, f_verify, f_spin, f_wait;
static CUdeviceptr result;
static void load(void) {
    CUmodule m;
    CK(cuModuleLoadData(&m, PTX));
    CK(cuModuleGetFunction(&f_fill, m, "nvshare_fill"));
    CK(cuModuleGetFunction(&f_verify, m, "nvshare_verify"));
    CK(cuModuleGetFunction(&f_spin, m, "nvshare_spin"));
    CK(cuModuleGetFunction(&f_wait, m, "nvshare_wait_flag"));
}
static CUgreenCtx green(CUcontext *as_context) {
    CUdevResource all, part, rest;
    CUdevResourceDesc d;
    CUgreenCtx g;
    unsigned n = 1;
    CK(cuDeviceGetDevResource(0, &all, CU_DEV_RESOURCE_TYPE_SM));
    CK(cuDevSmResourceSplitByCount(&part, &n, &all, &rest, 0, 16));
    CK(cuDevResourceGenerateDesc(&d, &part, 1));
    CK(cuGreenCtxCreate(&g, d, 0, CU_GREEN_CTX_DEFAULT_STREAM));
    CK(cuCtxFromGreenCtx(as_context, g));
    return g;
}
static void filled(CUdeviceptr p, uint64_t seed, CUstream s) {
    CK(launched(f_fill, s, p, BYTES / 8, seed, 0, 0, 0));
}
// Not helped by any order but that of the null stream of the current context.
static void holds(CUdeviceptr p, uint64_t seed, int line) {
    uint64_t n = 0;
    CK(cuMemsetD8(result, 0, 8));
    CK(launched(f_verify, 0, p, BYTES / 8, seed, 0, 0, result));
    CK(cuMemcpyDtoH(&n, result, 8));
    EXPECT(!n, "%lu words are wrong (line %d)", (unsigned long)n, line);
}
#define HOLDS(p, seed) holds(p, seed, __LINE__)
static int active(void) {
    unsigned flags;
    int on;
    CK(cuDevicePrimaryCtxGetState(0, &flags, &on));
    return on;
}
int main(int argc, char **argv) {
    order_swaps(argc > 2, argv);
    int under_green = !strcmp(argv[1], "green");
    CUcontext c = primary(0), again, as_context, current;
    CUgreenCtx g = green(&as_context);
    CUstream s;
    CUdeviceptr p, q, lost;
    load();
    CK(cuGreenCtxStreamCreate(&s, g, CU_STREAM_NON_BLOCKING, 0));
    if (under_green) CK(cuCtxSetCurrent(as_context));
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&q, BYTES));
    CK(cuMemAlloc(&result, 4096));

    // Work of a stream of it is waited for before anything moves.
    for (int round = 1; round <= 10; round++) {
        LAUNCH1(f_spin, s, 10000000);
        filled(p, round, s);
        CK(cuMemcpyDtoDAsync(q, p, BYTES, s));
        EXPECT(swapped(), "nothing moved in round %d", round);
        EXPECT(swaps < 0 || !cuStreamQuery(s), "it moved under work of a green context");
        CK(cuStreamSynchronize(s));
        HOLDS(p, round);
        HOLDS(q, round);
    }

    // The primary is released by everybody, and stays.
    CK(cuCtxSetCurrent(as_context));
    CK(cuDevicePrimaryCtxRelease(0));
    EXPECT(active(), "the green context keeps the primary one");
    LAUNCH1(f_spin, s, 10000000);
    filled(p, 77, s);
    EXPECT(swapped(), "nothing moved after the release");
    CK(cuStreamSynchronize(s));
    HOLDS(p, 77);
    HOLDS(q, 10);
    CK(cuDevicePrimaryCtxRetain(&again, 0));
    EXPECT(again == c, "another primary context");
    CK(cuCtxSetCurrent(c));
    HOLDS(p, 77);

    // It ends under its work, with more than one stream of it: that still is waited for.
    CUstream t;
    CK(cuGreenCtxStreamCreate(&t, g, CU_STREAM_NON_BLOCKING, 0));
    Flag go = new_flag();
    filled(p, 88, s);
    LAUNCH1(f_wait, t, go.device);
    filled(q, 89, t);
    CUevent after_s, after_t;
    CK(cuEventCreate(&after_s, 2));
    CK(cuEventCreate(&after_t, 2));
    CK(cuEventRecord(after_s, s));
    CK(cuEventRecord(after_t, t));
    CK(cuGreenCtxDestroy(g));
    EXPECT(cuEventQuery(after_t) == 600, "its end waited for its work");
    EXPECT(swapped() <= 0, "it moved under work that was left behind");
    *go.host = 1;
    EXPECT(swapped(), "nothing moved when that was over");
    while (cuEventQuery(after_s) || cuEventQuery(after_t)) nap(0.001);
    HOLDS(p, 88);
    HOLDS(q, 89);
    EXPECT(swapped(), "nothing moves any more");
    HOLDS(p, 88);
    CK(cuMemFree(q));

    // A last one keeps the primary, and takes it and all memory with it when it ends.
    size_t before = free_mib();
    g = green(&as_context);
    CK(cuGreenCtxStreamCreate(&s, g, CU_STREAM_NON_BLOCKING, 0));
    if (under_green) CK(cuCtxSetCurrent(as_context));
    CK(cuMemAlloc(&lost, BYTES));
    CK(cuCtxSetCurrent(as_context));
    CK(cuDevicePrimaryCtxRelease(0));
    LAUNCH1(f_spin, s, 10000000);
    filled(lost, 5, s);
    EXPECT(swapped(), "nothing moved under the last green context");
    LAUNCH1(f_spin, s, 10000000);
    filled(lost, 6, s);
    CK(cuCtxSetCurrent(NULL));
    CK(cuGreenCtxDestroy(g));
    EXPECT(!active(), "nobody keeps the primary context");
    CK(cuDevicePrimaryCtxRetain(&again, 0));
    EXPECT(again == c, "another primary context");
    CK(cuCtxSetCurrent(c));
    CK(cuCtxGetCurrent(&current));
    EXPECT(current == c, "it is not current");
    EXPECT(cuMemFree(lost) == 1 && cuMemFree(p) == 1, "memory lives on without its context");
    EXPECT(free_mib() >= before + BYTES / MIB, "%zu MiB are free, before that %zu and the %llu of memory that is gone",
           free_mib(), before, BYTES / MIB);
    load();
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&result, 4096));
    for (int round = 1; round <= 3; round++) {
        CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
        LAUNCH1(f_spin, s, 10000000);
        filled(p, 100 + round, s);
        CK(cuStreamDestroy(s));
        EXPECT(swapped(), "nothing moves in the context after it");
        CK(cuCtxSynchronize());
        HOLDS(p, 100 + round);
    }
    return done();
}
