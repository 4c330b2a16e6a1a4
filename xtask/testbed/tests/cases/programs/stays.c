// Memory that stays on the card: of arrays and of graphs. Says "made" and "gone", and goes on when it is told to.
// stays array|levels|context|graph|left: arrays too small to be moved each by itself, such with levels, such whose context ends, a
// graph that frees what it allocated, a graph that does not.
#include "case.h"
static void wait_here(const char *what) {
    char line[8];
    puts(what);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) _exit(3);
}
enum { COUNT = 16 };
int main(int argc, char **argv) {
    CUDA_ARRAY3D_DESCRIPTOR form = {.Width = 512, .Height = 512, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    CUcontext other;
    CUarray array[COUNT];
    CUmipmappedArray levels[COUNT];
    CUstream s;
    CUgraph g;
    CUgraphExec x;
    CUdeviceptr p;
    CUcontext first = primary(0);
    CK(cuMemAlloc(&p, 4096)); // What the engine needs is there.
    if (!strcmp(argv[1], "array")) {
        for (int i = 0; i < COUNT; i++) CK(cuArray3DCreate(&array[i], &form));
        wait_here("made");
        for (int i = 0; i < COUNT; i++) CK(cuArrayDestroy(array[i]));
    } else if (!strcmp(argv[1], "levels")) {
        for (int i = 0; i < COUNT; i++) CK(cuMipmappedArrayCreate(&levels[i], &form, 2)); // 16 and 4 MiB
        wait_here("made");
        for (int i = 0; i < COUNT; i++) CK(cuMipmappedArrayDestroy(levels[i]));
    } else if (!strcmp(argv[1], "context")) {
        CK(cuCtxCreate(&other, 0, 0));
        for (int i = 0; i < COUNT; i++) CK(cuArray3DCreate(&array[i], &form));
        wait_here("made");
        CK(cuCtxDestroy(other));
        CK(cuCtxSetCurrent(first));
    } else {
        int left = !strcmp(argv[1], "left");
        CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
        CK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
        CK(cuMemAllocAsync(&p, 16 * MIB, s));
        CK(cuMemsetD8Async(p, 1, 16 * MIB, s));
        if (!left) CK(cuMemFreeAsync(p, s));
        CK(cuStreamEndCapture(s, &g));
        CK(cuGraphInstantiateWithFlags(&x, g, 0));
        CK(cuGraphLaunch(x, s));
        CK(cuStreamSynchronize(s));
        wait_here("made");
        if (left) CK(cuMemFree(p));
        CK(cuGraphExecDestroy(x));
        CK(cuGraphDestroy(g));
        CK(cuDeviceGraphMemTrim(0));
    }
    wait_here("gone");
    return done();
}
