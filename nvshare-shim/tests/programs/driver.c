// A driver that does nothing: every function answers success. It is asked for its functions as NVIDIA's is, and can say
// how often each was called.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FUNCTIONS(X) \
    X(cuInit) X(cuDriverGetVersion) X(cuMemAlloc) X(cuMemAlloc_v2) X(cuMemFree) X(cuMemFree_v2) X(cuMemAllocAsync) \
    X(cuMemAllocAsync_ptsz) X(cuMemGetInfo_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyHtoD_v2_ptds) X(cuMemcpyDtoHAsync_v2) \
    X(cuMemcpyDtoHAsync_v2_ptsz) X(cuMemsetD8_v2) X(cuMemsetD8_v2_ptds) X(cuLaunchKernel) X(cuLaunchKernel_ptsz) \
    X(cuLaunchKernelEx) X(cuLaunchKernelEx_ptsz) X(cuGraphLaunch) X(cuGraphLaunch_ptsz) X(cuStreamSynchronize) \
    X(cuStreamSynchronize_ptsz) X(cuStreamGetFlags) X(cuStreamGetFlags_ptsz) X(cuCtxSynchronize) X(cuMemAdvise) \
    X(cuMemAdvise_v2) X(cuMemPrefetchAsync) X(cuMemPrefetchAsync_v2) X(cuMemPrefetchAsync_v2_ptsz) \
    X(cuEventCreate) X(cuThreadExchangeStreamCaptureMode)

#define NUMBER(name) number_of_##name,
enum { FUNCTIONS(NUMBER) COUNT };
static unsigned long calls[COUNT];

#ifdef UNCOUNTED // for the benchmarks
#define DEFINE(name) int name(void) { return 0; }
int bare_launch(void) { return 0; }
#else
#define DEFINE(name) int name(void) { __atomic_add_fetch(&calls[number_of_##name], 1, __ATOMIC_RELAXED); return 0; }
#endif
FUNCTIONS(DEFINE)

int cuStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return 0; }

// Waits until somebody says so; a cancellation point.
static int release[2];
__attribute__((constructor)) static void begin(void) { if (pipe(release)) abort(); }
int cuEventSynchronize(void *event) {
    char byte;
    (void)event;
    return read(release[0], &byte, 1) != 1;
}
void null_release(void) { if (write(release[1], "", 1) != 1) abort(); }

unsigned long null_calls(const char *name) {
#define COUNTED(function) if (strcmp(name, #function) == 0) return calls[number_of_##function];
    FUNCTIONS(COUNTED)
    return -1ul;
}

// The newest variant first, as NVIDIA's answers for a current version; through dlsym, as NVIDIA's looks up its own.
static void *find(const char *name, unsigned long long flags) {
    static const char *const per_thread[] = {"_v2_ptsz", "_v2_ptds", "_ptsz", "_ptds"};
    static const char *const shared[] = {"_v2", ""};
    Dl_info here;
    dladdr((void *)find, &here);
    void *self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    char full[128];
    void *found = NULL;
    for (int i = 0; (flags & 2) && i < 4 && !found; i++) {
        snprintf(full, sizeof full, "%s%s", name, per_thread[i]);
        found = dlsym(self, full);
    }
    for (int i = 0; i < 2 && !found; i++) {
        snprintf(full, sizeof full, "%s%s", name, shared[i]);
        found = dlsym(self, full);
    }
    return found;
}

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    (void)version;
    *found = find(name, flags);
    if (status) *status = *found ? 0 : 1;
    return *found ? 0 : 500;
}

int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}
