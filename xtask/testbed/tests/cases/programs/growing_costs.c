// What a free costs with 3 and with 195 streams, a question about a span of 2 and of 128 extents
// (NVSHARE_EXTENT_BYTES=4M), and waiting for an event while another stream is captured. Prints "NAME
// nanoseconds" a line; the test compares with bare.
#include "case.h"
static void say(const char *what, double t, int n) {
    printf("%s %.0f\n", what, (now() - t) / n * 1e9);
    fflush(stdout);
}
static void frees(const char *what) {
    CUdeviceptr q[200];
    for (int i = 0; i < 200; i++) {
        CK(cuMemAlloc(&q[i], 4096));
        CK(cuMemsetD8(q[i], 1, 4096));
    }
    CK(cuCtxSynchronize());
    double t = now();
    for (int i = 0; i < 200; i++) CK(cuMemFree(q[i]));
    say(what, t, 200);
}
static void asks(const char *what, size_t n) {
    CUdeviceptr p;
    CK(cuMemAlloc(&p, n));
    double t = now();
    for (int i = 0; i < 20000; i++) {
        int type;
        CK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + n / 2));
    }
    say(what, t, 20000);
    CK(cuMemFree(p));
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
    double t = now();
    for (int i = 0; i < 2000; i++) CK(cuStreamWaitEvent(s, e, 0));
    say("wait", t, 2000);
    CK(cuCtxSynchronize());
    CK(cuStreamBeginCapture(cap, CU_STREAM_CAPTURE_MODE_RELAXED));
    t = now();
    for (int i = 0; i < 2000; i++) CK(cuStreamWaitEvent(s, e, 0));
    say("wait-while-captured", t, 2000);
    CK(cuStreamEndCapture(cap, &g));
    frees("free-3-streams");
    for (int i = 0; i < 192; i++) {
        CUstream x;
        CK(cuStreamCreate(&x, 1));
    }
    frees("free-195-streams");
    return 0;
}
