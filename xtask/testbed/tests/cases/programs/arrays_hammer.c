// Threads make, write, read and end arrays, each for itself, while everything is swapped, contexts end and a stream is captured:
// arrays_hammer DEVICE ROUNDS [swaps].
#include "swaps.h"
#define KEEPS 4
static const struct {
    CUDA_ARRAY3D_DESCRIPTOR form;
    size_t element;
    unsigned levels;
} FORMS[] = {
    {{1024, 1024, 0, CU_AD_FORMAT_FLOAT, 1, 0}, 4, 0},          {{1001, 2001, 0, CU_AD_FORMAT_UNSIGNED_INT8, 4, 0}, 4, 0},
    {{512, 512, 4, CU_AD_FORMAT_UNSIGNED_INT32, 1, 1}, 4, 0},   {{1024, 1536, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1, 0}, 4, 4},
    {{256, 256, 32, CU_AD_FORMAT_HALF, 1, 0}, 2, 0},            {{64, 64, 0, CU_AD_FORMAT_FLOAT, 1, 0}, 4, 0},
    {{1024, 664, 0, CU_AD_FORMAT_FLOAT, 1, 0}, 4, 0},           {{2048, 0, 512, CU_AD_FORMAT_FLOAT, 1, 1}, 4, 0},
};
enum { KINDS = sizeof FORMS / sizeof *FORMS };
static int card, rounds, captures;
static CUcontext all;
static volatile int over;
struct kept {
    CUarray array;
    CUmipmappedArray levels;
    int kind;
    unsigned seed;
};
// The copies of a thread that is not relaxed are refused beside a capture; making and ending arrays must not break it.
static void copies(int begin) {
    int mode = begin ? CU_STREAM_CAPTURE_MODE_RELAXED : 0;
    if (captures) CK(cuThreadExchangeStreamCaptureMode(&mode));
}
static void each_level(struct kept *k, unsigned char *host, int in) {
    copies(1);
    unsigned count = k->levels ? FORMS[k->kind].levels : 1;
    for (unsigned l = 0; l < count; l++) {
        CUDA_ARRAY3D_DESCRIPTOR f = FORMS[k->kind].form;
        CUarray array = k->array;
        size_t row = (f.Width >> l) * FORMS[k->kind].element, rows = (f.Height ? f.Height : 1) >> l, slices = f.Depth ? f.Depth : 1;
        size_t bytes = row * rows * slices, wrong = 0;
        if (k->levels) CK(cuMipmappedArrayGetLevel(&array, k->levels, l));
        CUDA_MEMCPY3D c = {.WidthInBytes = row, .Height = rows, .Depth = slices};
        if (in) {
            for (size_t i = 0; i < bytes; i++) host[i] = (unsigned char)(i * 7 + (i >> 11) + k->seed + l);
            c.srcMemoryType = CU_MEMORYTYPE_HOST, c.srcHost = host, c.srcPitch = row, c.srcHeight = rows;
            c.dstMemoryType = CU_MEMORYTYPE_ARRAY, c.dstArray = array;
            CK(cuMemcpy3D(&c));
            continue;
        }
        memset(host, 0, bytes);
        c.dstMemoryType = CU_MEMORYTYPE_HOST, c.dstHost = host, c.dstPitch = row, c.dstHeight = rows;
        c.srcMemoryType = CU_MEMORYTYPE_ARRAY, c.srcArray = array;
        CK(cuMemcpy3D(&c));
        for (size_t i = 0; i < bytes; i++) wrong += host[i] != (unsigned char)(i * 7 + (i >> 11) + k->seed + l);
        EXPECT(!wrong, "kind %d level %u: %zu bytes of %zu are wrong", k->kind, l, wrong, bytes);
    }
    copies(0);
}
static void *works(void *of) {
    unsigned random = 7 + (unsigned)(size_t)of;
    struct kept kept[KEEPS] = {{0}};
    unsigned char *host = malloc(16 * MIB);
    CK(cuCtxSetCurrent(all));
    for (int round = 0; round < rounds; round++) {
        random = random * 1664525 + 1013904223;
        struct kept *k = &kept[(random >> 8) % KEEPS];
        if (k->array || k->levels) {
            each_level(k, host, 0);
            if (k->levels)
                CK(cuMipmappedArrayDestroy(k->levels));
            else
                CK(cuArrayDestroy(k->array));
            *k = (struct kept){0};
            continue;
        }
        k->kind = (int)((random >> 16) % KINDS), k->seed = random >> 4;
        // Beside captures only what the driver does not make itself.
        if (captures && k->kind >= 5) k->kind = 0;
        if (FORMS[k->kind].levels)
            CK(cuMipmappedArrayCreate(&k->levels, &FORMS[k->kind].form, FORMS[k->kind].levels));
        else {
            CUresult made = cuArray3DCreate(&k->array, &FORMS[k->kind].form);
            EXPECT(!made, "kind %d: %d, and %zu MiB are free", k->kind, made, free_mib());
            if (made) _exit(2);
        }
        // Some are never written.
        if (random >> 30) {
            each_level(k, host, 1);
        } else {
            if (k->levels)
                CK(cuMipmappedArrayDestroy(k->levels));
            else
                CK(cuArrayDestroy(k->array));
            *k = (struct kept){0};
        }
    }
    for (int i = 0; i < KEEPS; i++) {
        if (!kept[i].array && !kept[i].levels) continue;
        each_level(&kept[i], host, 0);
        if (kept[i].levels)
            CK(cuMipmappedArrayDestroy(kept[i].levels));
        else
            CK(cuArrayDestroy(kept[i].array));
    }
    free(host);
    return 0;
}
static void *orders(void *unused) {
    (void)unused;
    while (!over) {
        if (swapped() < 0) return 0;
        nap(0.003);
        if (!over) ordered('o');
    }
    return 0;
}
static void *records(void *at) {
    CUstream s;
    CK(cuCtxSetCurrent(all));
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    while (!over) {
        CUgraph g;
        CK(cuStreamBeginCapture(s, 0 /* global */));
        CK(cuMemsetD8Async(*(CUdeviceptr *)at, 1, 4096, s));
        nap(0.002);
        CK(cuStreamEndCapture(s, &g));
        CK(cuGraphDestroy(g));
    }
    CK(cuStreamDestroy(s));
    return 0;
}
int main(int argc, char **argv) {
    order_swaps(argc > 3 && !strcmp(argv[3], "swaps"), argv);
    card = atoi(argv[1]), rounds = atoi(argv[2]), captures = argc > 4;
    pthread_t threads[3], order, record;
    CUdeviceptr p;
    all = primary(card);
    CK(cuMemAlloc(&p, 4096));
    size_t before = free_mib();
    pthread_create(&order, 0, orders, 0);
    if (captures) pthread_create(&record, 0, records, &p);
    for (size_t i = 0; i < 3; i++) pthread_create(&threads[i], 0, works, (void *)(i * 77));
    for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
    over = 1;
    pthread_join(order, 0);
    if (captures) pthread_join(record, 0);
    ordered('s');
    EXPECT(argc < 4 || strcmp(argv[3], "swaps") || free_mib() + 1 >= before, "%zu MiB were free, and %zu are", before, free_mib());
    CK(cuMemFree(p));
    return done();
}
