// Arrays whose end meets something else: arrays_end WHAT [swaps].
// kernel: an array that the driver makes itself after all, and one for which there is no memory, beside a kernel that runs
// green: one that was made while a green context was current, which is gone
// low: many of few rows, of which the driver asks for whole tiles
// contexts: contexts end with arrays in them while everything is ordered out
#include "swaps.h"
static const CUDA_ARRAY3D_DESCRIPTOR LARGE = {1024, 1024, 0, CU_AD_FORMAT_FLOAT, 1, 0};
#define BYTES (4 * MIB)
static unsigned char *bytes, *back;
static CUDA_MEMCPY3D whole(CUarray array, void *host, int in) {
    CUDA_MEMCPY3D c = {.WidthInBytes = 4096, .Height = 1024, .Depth = 1};
    if (in) {
        c.srcMemoryType = CU_MEMORYTYPE_HOST, c.srcHost = host, c.srcPitch = 4096;
        c.dstMemoryType = CU_MEMORYTYPE_ARRAY, c.dstArray = array;
    } else {
        c.dstMemoryType = CU_MEMORYTYPE_HOST, c.dstHost = host, c.dstPitch = 4096;
        c.srcMemoryType = CU_MEMORYTYPE_ARRAY, c.srcArray = array;
    }
    return c;
}
static void into(CUarray array, int value) {
    for (size_t i = 0; i < BYTES; i++) bytes[i] = (unsigned char)(i * 7 + (i >> 13) + value);
    CUDA_MEMCPY3D c = whole(array, bytes, 1);
    CK(cuMemcpy3D(&c));
}
static void check(CUarray array, int value) {
    CUDA_MEMCPY3D c = whole(array, back, 0);
    for (size_t i = 0; i < BYTES; i++) bytes[i] = (unsigned char)(i * 7 + (i >> 13) + value);
    CK(cuMemcpy3D(&c));
    EXPECT(!memcmp(bytes, back, BYTES), "other bytes");
}
static volatile unsigned *flag;
static int late;
static void *release(void *unused) {
    (void)unused;
    for (int i = 0; i < 40 && !*flag; i++) nap(0.1);
    late = !*flag;
    *flag = 1;
    return 0;
}
static void beside_a_kernel(void) {
    // 2.6 MiB, which would be rounded up to 4; more than the card has; a quarter more than is free.
    CUDA_ARRAY3D_DESCRIPTOR odd = {1024, 664, 0, CU_AD_FORMAT_FLOAT, 1, 0}, huge = {16384, 16384, 0, CU_AD_FORMAT_FLOAT, 1, 0};
    CUDA_ARRAY3D_DESCRIPTOR full = {8192, 0, 0, CU_AD_FORMAT_FLOAT, 1, 0};
    CUfunction wait = kernel("nvshare_wait_flag");
    CUstream s;
    CUdeviceptr f;
    CUarray made[3];
    CUmipmappedArray levels;
    pthread_t thread;
    full.Height = (free_mib() + free_mib() / 4) * MIB / (8192 * 4);
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CK(cuMemHostAlloc((void **)&flag, 4096, 0));
    *flag = 0;
    CK(cuMemHostGetDevicePointer(&f, (void *)flag, 0));
    LAUNCH1(wait, s, f);
    pthread_create(&thread, 0, release, 0);
    for (int i = 0; i < 3; i++) CK(cuArray3DCreate(&made[i], &odd));
    CK(cuMipmappedArrayCreate(&levels, &odd, 1));
    for (int i = 0; i < 3; i++) {
        CUarray none;
        EXPECT(cuArray3DCreate(&none, &full) == 2, "more than is free");
        EXPECT(cuArray3DCreate(&none, &huge) == 2, "more than there is");
    }
    *flag = 1;
    pthread_join(thread, 0);
    EXPECT(!late, "who makes an array waits for a kernel");
    CK(cuStreamSynchronize(s));
    CK(cuMipmappedArrayDestroy(levels));
    for (int i = 0; i < 3; i++) CK(cuArrayDestroy(made[i]));
}
static void under_green(void) {
    CUdevResource all, part, rest;
    CUdevResourceDesc d;
    CUgreenCtx g;
    CUcontext c, current;
    CUarray first, second;
    unsigned n = 1;
    CK(cuCtxGetCurrent(&c));
    CK(cuDeviceGetDevResource(0, &all, CU_DEV_RESOURCE_TYPE_SM));
    CK(cuDevSmResourceSplitByCount(&part, &n, &all, &rest, 0, 16));
    CK(cuDevResourceGenerateDesc(&d, &part, 1));
    CK(cuGreenCtxCreate(&g, d, 0, CU_GREEN_CTX_DEFAULT_STREAM));
    CK(cuCtxFromGreenCtx(&current, g));
    CK(cuCtxSetCurrent(current));
    CK(cuArray3DCreate(&first, &LARGE));
    into(first, 1);
    EXPECT(swapped() != 0, "nothing leaves");
    check(first, 1);
    CK(cuCtxSetCurrent(c));
    CK(cuGreenCtxDestroy(g));
    CK(cuArray3DCreate(&second, &LARGE));
    into(second, 2);
    EXPECT(swapped() != 0, "nothing leaves when the green context is gone");
    check(first, 1), check(second, 2);
    size_t before = free_mib();
    int out = ordered('o');
    EXPECT(out < 0 || free_mib() >= before + 2 * BYTES / MIB, "they do not leave");
    check(first, 1), check(second, 2);
    CK(cuArrayDestroy(first));
    CK(cuArrayDestroy(second));
}
static void of_few_rows(void) {
    CUDA_ARRAY3D_DESCRIPTOR low = {2048, 0, 512, CU_AD_FORMAT_FLOAT, 1, CUDA_ARRAY3D_LAYERED};
    CUarray made[20];
    size_t before = free_mib(), taken;
    for (int i = 0; i < 20; i++) CK(cuArray3DCreate(&made[i], &low));
    taken = before - free_mib();
    EXPECT(taken >= 80 && taken <= 100, "20 of 4 MiB take %zu MiB", taken);
    for (int i = 0; i < 20; i++) CK(cuArrayDestroy(made[i]));
}
static volatile int over;
static void *order(void *unused) {
    (void)unused;
    while (!over)
        if (swapped() < 0) nap(0.001);
    return 0;
}
static void contexts(void) {
    CUcontext first, at[2];
    pthread_t thread;
    CK(cuCtxGetCurrent(&first));
    pthread_create(&thread, 0, order, 0);
    for (int round = 0; round < 8; round++) {
        CUarray array[8];
        CUdeviceptr p[24], q;
        // The engine is at home in the first of them, and then, when that ends, in the other.
        CK(cuCtxCreate(&at[0], 0, 0));
        for (int i = 0; i < 24; i++) CK(cuMemAlloc(&p[i], 2 * MIB));
        for (int i = 0; i < 8; i++) {
            CK(cuArray3DCreate(&array[i], &LARGE));
            into(array[i], i);
        }
        CK(cuCtxCreate(&at[1], 0, 0));
        CK(cuMemAlloc(&q, 4 * MIB));
        nap(0.002 * (round % 5));
        CK(cuCtxSetCurrent(at[0]));
        for (int i = 0; i < 8; i += 7) check(array[i], i);
        CK(cuCtxDestroy(at[0]));
        CK(cuCtxSetCurrent(at[1]));
        CK(cuMemsetD8(q, 1, 4 * MIB));
        CK(cuCtxDestroy(at[1]));
    }
    over = 1;
    pthread_join(thread, 0);
    CK(cuCtxSetCurrent(first));
}
int main(int argc, char **argv) {
    order_swaps(argc > 2, argv);
    CUdeviceptr p;
    int ends = !strcmp(argv[1], "contexts");
    bytes = malloc(BYTES), back = malloc(BYTES);
    primary(0);
    if (ends) {
        contexts();
        return done();
    }
    CK(cuMemAlloc(&p, 4096));
    size_t before = free_mib();
    if (!strcmp(argv[1], "kernel")) {
        kernel("nvshare_wait_flag");
        before = free_mib();
        beside_a_kernel();
    } else if (!strcmp(argv[1], "low")) {
        of_few_rows();
    } else under_green();
    EXPECT(free_mib() + 1 >= before, "%zu MiB were free, and %zu are", before, free_mib());
    CK(cuMemFree(p));
    return done();
}
