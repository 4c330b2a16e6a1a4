// What single driver calls cost: "NAME P50 P99" a line, in nanoseconds. calls [launch]
#include "case.h"
static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double took[20000];
static void say(const char *name, int n) {
    qsort(took, n, sizeof *took, compare);
    printf("%s %.1f %.1f\n", name, took[n / 2] * 1e9, took[n * 99 / 100] * 1e9);
    fflush(stdout);
}
static void frees(const char *name) {
    enum { N = 400 };
    static CUdeviceptr all[N];
    for (int i = 0; i < N; i++) {
        CK(cuMemAlloc(&all[i], 4096));
        CK(cuMemsetD8(all[i], 1, 4096));
    }
    CK(cuCtxSynchronize());
    for (int i = 0; i < N; i++) {
        double t = now();
        CK(cuMemFree(all[i]));
        took[i] = now() - t;
    }
    say(name, N);
}
static void asks(const char *name, size_t bytes) {
    enum { N = 20000 };
    CUdeviceptr p;
    CK(cuMemAlloc(&p, bytes));
    for (int i = 0; i < N; i++) {
        int type;
        double t = now();
        CK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + bytes / 2));
        took[i] = now() - t;
    }
    say(name, N);
    CK(cuMemFree(p));
}
static void launches(void) {
    enum { N = 20000 };
    CUfunction spins = kernel("nvshare_spin");
    for (int i = 0; i < N; i++) {
        double t = now();
        LAUNCH1(spins, 0, 0);
        took[i] = now() - t;
        if (i % 64 == 63) CK(cuCtxSynchronize());
    }
    say("launch", N);
}
static void pairs(void) {
    enum { N = 5000 };
    CUstream s;
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    for (int i = 0; i < N; i++) {
        CUdeviceptr p;
        double t = now();
        CK(cuMemAllocAsync(&p, MIB, s));
        CK(cuMemFreeAsync(p, s));
        took[i] = now() - t;
        if (i % 64 == 63) CK(cuStreamSynchronize(s));
    }
    say("pair", N);
}
// A call that passes the gate and is no launch.
static void records(void) {
    enum { N = 20000 };
    CUevent e;
    CK(cuEventCreate(&e, 0));
    for (int i = 0; i < N; i++) {
        double t = now();
        CK(cuEventRecord(e, 0));
        took[i] = now() - t;
        if (i % 64 == 63) CK(cuCtxSynchronize());
    }
    say("record", N);
}
// What a framework's allocator does for a segment: make, map, let use; and back.
static void maps(void) {
    enum { N = 200 };
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUdeviceptr at;
    CK(cuMemAddressReserve(&at, 64 * MIB, 0, 0, 0));
    for (int i = 0; i < N; i++) {
        CUmemGenericAllocationHandle handle;
        double t = now();
        CK(cuMemCreate(&handle, 64 * MIB, &prop, 0));
        CK(cuMemMap(at, 64 * MIB, 0, handle, 0));
        CK(cuMemSetAccess(at, 64 * MIB, &access, 1));
        took[i] = now() - t;
        CK(cuMemUnmap(at, 64 * MIB));
        CK(cuMemRelease(handle));
    }
    say("map", N);
    CK(cuMemAddressFree(at, 64 * MIB));
}
// Plain memory, as much as a framework takes at once.
static void plain(void) {
    enum { N = 200 };
    for (int i = 0; i < N; i++) {
        CUdeviceptr p;
        double t = now();
        CK(cuMemAlloc(&p, 256 * MIB));
        CK(cuMemFree(p));
        took[i] = now() - t;
    }
    say("plain", N);
}
int main(int argc, char **argv) {
    primary(0);
    launches();
    if (argc > 1) return 0;
    records();
    pairs();
    maps();
    plain();
    asks("ask-2-extents", 8 * MIB);
    asks("ask-128-extents", 512 * MIB);
    frees("free-few-streams");
    for (int i = 0; i < 192; i++) {
        CUstream s;
        CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    }
    frees("free-many-streams");
    // From now on a free asks first whether its own context is one that is gone.
    CUcontext other;
    CK(cuCtxCreate(&other, 0, 0));
    CK(cuCtxDestroy(other));
    frees("free-after-a-context");
    return 0;
}
