// What the programs share: calls that say where they failed, the kernels that the simulator knows by name, a
// clock.
#define _GNU_SOURCE
#include "cuda.h"
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define MIB (1ull << 20)
static int failures;
#define CK(call)                                                                                             \
    do {                                                                                                     \
        CUresult r_ = (call);                                                                                \
        if (r_) {                                                                                            \
            printf("FAILED %d %s (line %d)\n", (int)r_, #call, __LINE__);                                    \
            fflush(stdout);                                                                                  \
            _exit(2);                                                                                        \
        }                                                                                                    \
    } while (0)
#define EXPECT(cond, ...)                                                                                    \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            failures++;                                                                                      \
            printf("UNEXPECTED (line %d): ", __LINE__);                                                      \
            printf(__VA_ARGS__);                                                                             \
            printf("\n");                                                                                    \
            fflush(stdout);                                                                                  \
        }                                                                                                    \
    } while (0)
static const char *PTX __attribute__((unused)) =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry nvshare_fill(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d) { ret; }\n"
    ".visible .entry nvshare_verify(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d, .param .u64 "
    "e, .param .u64 f) { ret; }\n"
    ".visible .entry nvshare_spin(.param .u64 a) { ret; }\n"
    ".visible .entry nvshare_wait_flag(.param .u64 a) { ret; }\n";
static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}
static inline void nap(double s) {
    struct timespec t = {(time_t)s, (long)((s - (time_t)s) * 1e9)};
    nanosleep(&t, 0);
}
static inline CUcontext primary(int device) {
    CUcontext c;
    CK(cuInit(0));
    CK(cuDevicePrimaryCtxRetain(&c, device));
    CK(cuCtxSetCurrent(c));
    return c;
}
static inline CUfunction kernel(const char *name) { // of the current context
    static __thread CUmodule m;
    static __thread CUcontext of;
    CUcontext c;
    CUfunction f;
    CK(cuCtxGetCurrent(&c));
    if (!m || of != c) {
        CK(cuModuleLoadData(&m, PTX));
        of = c;
    }
    CK(cuModuleGetFunction(&f, m, name));
    return f;
}
static inline CUresult launched(CUfunction f, CUstream s, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                                uint64_t e, uint64_t g) {
    void *p[] = {&a, &b, &c, &d, &e, &g};
    return cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, s, p, NULL);
}
#define LAUNCH1(f, s, a) CK(launched(f, s, a, 0, 0, 0, 0, 0))
static inline void fill(CUdeviceptr p, uint64_t bytes, uint64_t seed) {
    CK(launched(kernel("nvshare_fill"), 0, p, bytes / 8, seed, 0, 0, 0));
}
static inline uint64_t wrong(CUdeviceptr p, uint64_t bytes, uint64_t seed, CUdeviceptr result) {
    uint64_t n = 0;
    CK(cuMemsetD8(result, 0, 8));
    CK(launched(kernel("nvshare_verify"), 0, p, bytes / 8, seed, 0, 0, result));
    CK(cuMemcpyDtoH(&n, result, 8));
    return n;
}
typedef struct {
    volatile unsigned *host;
    CUdeviceptr device;
} Flag; // what a kernel waits for and the host sets
static inline Flag new_flag(void) {
    Flag f;
    CK(cuMemHostAlloc((void **)&f.host, 4096, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP));
    *f.host = 0;
    CK(cuMemHostGetDevicePointer(&f.device, (void *)f.host, 0));
    return f;
}
static inline size_t free_mib(void) {
    size_t f, t;
    CK(cuMemGetInfo(&f, &t));
    return f >> 20;
}
static inline CUmemAllocationProp on_device(int device) {
    CUmemAllocationProp p = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                             .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
    return p;
}
static inline int done(void) {
    printf(failures ? "NOT AS EXPECTED: %d\n" : "OK\n", failures);
    fflush(stdout);
    return failures ? 1 : 0;
}
