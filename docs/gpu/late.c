// Whether cuMemcpyHtoD from pageable memory may return before the bytes are there, as a stream sees it that waits for no legacy
// stream; and whether the legacy stream says so. Another thread keeps the link busy.
//
//     cc -O2 -o late late.c -lcuda -lpthread && ./late
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define CK(call)                                                                                                                \
    do {                                                                                                                        \
        int code = (call);                                                                                                      \
        if (code) {                                                                                                             \
            printf("%s %d\n", #call, code);                                                                                     \
            exit(1);                                                                                                            \
        }                                                                                                                       \
    } while (0)
enum { ROUNDS = 300, MIB = 1 << 20 };
static CUcontext context;
static volatile int stop;
static void *busy(void *unused) {
    void *host;
    CUdeviceptr device;
    CUstream s;
    CK(cuCtxSetCurrent(context));
    CK(cuMemHostAlloc(&host, 256 * MIB, 0));
    CK(cuMemAlloc(&device, 256 * MIB));
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    while (!stop) {
        for (int i = 0; i < 4; i++) CK(cuMemcpyHtoDAsync(device, host, 256 * MIB, s));
        CK(cuStreamSynchronize(s));
    }
    return unused;
}
int main(void) {
    static const size_t SIZES[] = {4096, 65536, 131072, 524288, 4 * MIB};
    pthread_t thread;
    CUdeviceptr p;
    CUstream s;
    CK(cuInit(0));
    CK(cuDevicePrimaryCtxRetain(&context, 0));
    CK(cuCtxSetCurrent(context));
    pthread_create(&thread, 0, busy, 0);
    CK(cuMemAlloc(&p, 8 * MIB));
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    for (size_t k = 0; k < sizeof SIZES / sizeof *SIZES; k++) {
        size_t bytes = SIZES[k];
        unsigned char *from = malloc(bytes), *back = malloc(bytes);
        int late = 0, said = 0;
        for (int i = 0; i < ROUNDS; i++) {
            memset(from, 2 + i % 100, bytes);
            CK(cuMemcpyHtoD(p, from, bytes));
            said += cuStreamQuery(CU_STREAM_LEGACY) == CUDA_ERROR_NOT_READY;
            CK(cuMemsetD8Async(p, 1, bytes, s));
            CK(cuStreamSynchronize(s));
            CK(cuStreamSynchronize(CU_STREAM_LEGACY));
            CK(cuMemcpyDtoH(back, p, bytes));
            size_t others = 0;
            for (size_t at = 0; at < bytes; at++) others += back[at] != 1;
            late += others > 0;
        }
        printf("%zu bytes: of %d copies %d landed after a later memset; the legacy stream was busy %d times\n", bytes, ROUNDS, late, said);
    }
    stop = 1;
    pthread_join(thread, 0);
}
