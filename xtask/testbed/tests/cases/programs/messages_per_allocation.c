// Pairs of cuMemAllocAsync and cuMemFreeAsync beside an agent; argument: pairs. the test counts the messages
// to the agent.
#include "case.h"
int main(int argc, char **argv) {
    primary(0);
    CUstream s;
    CUdeviceptr p, q;
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CK(cuMemAlloc(&q, 4 * MIB));
    int n = atoi(argv[1]);
    double t = now();
    for (int i = 0; i < n; i++) {
        CK(cuMemAllocAsync(&p, MIB, s));
        CK(cuMemFreeAsync(p, s));
        if (i % 64 == 63) CK(cuStreamSynchronize(s));
    }
    printf("%.2f us a pair\n", (now() - t) / n * 1e6);
    nap(0.5);
    return done();
}
