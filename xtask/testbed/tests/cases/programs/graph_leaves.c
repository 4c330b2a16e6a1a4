// A graph that allocates, computes and frees: what it keeps between two launches is given back when the program is swapped out, and
// taken again by the next launch. Says "made" and "again", and goes on when it is told to.
#include "case.h"
#define BYTES (16 * MIB)
static void wait_here(const char *what) {
    char line[8];
    puts(what);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) _exit(3);
}
int main(void) {
    CUdeviceptr p, kept, result;
    CUstream s;
    CUgraph g;
    CUgraphExec x;
    primary(0);
    CK(cuMemAlloc(&kept, BYTES));
    CK(cuMemAlloc(&result, 4096));
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    CK(cuMemAllocAsync(&p, BYTES, s));
    CK(cuMemcpyDtoDAsync(p, kept, BYTES, s));
    CK(cuMemsetD8Async(p, 7, BYTES / 2, s));
    CK(cuMemcpyDtoDAsync(kept, p, BYTES, s));
    CK(cuMemFreeAsync(p, s));
    CK(cuStreamEndCapture(s, &g));
    CK(cuGraphInstantiateWithFlags(&x, g, 0));
    for (int round = 0; round < 2; round++) {
        unsigned char first = 0;
        fill(kept, BYTES, 3 + round);
        CK(cuCtxSynchronize());
        CK(cuGraphLaunch(x, s));
        CK(cuStreamSynchronize(s));
        CK(cuMemcpyDtoH(&first, kept + BYTES / 2 - 1, 1));
        EXPECT(first == 7, "what the graph set is %d", first);
        fill(kept, BYTES / 2, 3 + round);
        EXPECT(!wrong(kept, BYTES, 3 + round, result), "what went through the graph's memory");
        wait_here(round ? "again" : "made");
    }
    CK(cuGraphExecDestroy(x));
    CK(cuGraphDestroy(g));
    CK(cuDeviceGraphMemTrim(0));
    wait_here("gone");
    return done();
}
