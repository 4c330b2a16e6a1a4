// What a free costs with 3 and with 195 streams, a question about a span of 2 and of 128 extents
// (NVSHARE_EXTENT_BYTES=4M), and waiting for an event while another stream is captured. Prints "NAME nanoseconds" a
// line, of many short rounds the quickest, which nobody interrupted; the test compares with bare.
#include "case.h"
enum { ROUNDS = 25 };
static void quickest(double *least, double since, int n) {
    double t = (now() - since) / n * 1e9;
    if (!*least || t < *least) *least = t;
}
static void say(const char *what, double least) {
    printf("%s %.0f\n", what, least);
    fflush(stdout);
}
static void frees(const char *what) {
    CUdeviceptr q[50];
    double least = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 50; i++) {
            CK(cuMemAlloc(&q[i], 4096));
            CK(cuMemsetD8(q[i], 1, 4096));
        }
        CK(cuCtxSynchronize());
        double t = now();
        for (int i = 0; i < 50; i++) CK(cuMemFree(q[i]));
        quickest(&least, t, 50);
    }
    say(what, least);
}
static void asks(const char *what, size_t n) {
    CUdeviceptr p;
    double least = 0;
    CK(cuMemAlloc(&p, n));
    for (int round = 0; round < ROUNDS; round++) {
        double t = now();
        for (int i = 0; i < 500; i++) {
            int type;
            CK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + n / 2));
        }
        quickest(&least, t, 500);
    }
    say(what, least);
    CK(cuMemFree(p));
}
static void waits(const char *what, CUstream s, CUevent e) {
    double least = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double t = now();
        for (int i = 0; i < 100; i++) CK(cuStreamWaitEvent(s, e, 0));
        quickest(&least, t, 100);
    }
    say(what, least);
}
int main(void) {
    primary(0);
    CUstream s, of, cap;
    CUevent e;
    CUgraph g;
    CK(cuStreamCreate(&s, 1));
    CK(cuStreamCreate(&of, 1));
    CK(cuStreamCreate(&cap, 1));
    asks("ask-2-extents", 8 * MIB);
    asks("ask-128-extents", 512 * MIB);
    CK(cuEventCreate(&e, 2));
    CK(cuEventRecord(e, of));
    waits("wait", s, e);
    CK(cuCtxSynchronize());
    CK(cuStreamBeginCapture(cap, CU_STREAM_CAPTURE_MODE_RELAXED));
    waits("wait-while-captured", s, e);
    CK(cuStreamEndCapture(cap, &g));
    frees("free-3-streams");
    for (int i = 0; i < 192; i++) {
        CUstream x;
        CK(cuStreamCreate(&x, 1));
    }
    frees("free-195-streams");
    return 0;
}
