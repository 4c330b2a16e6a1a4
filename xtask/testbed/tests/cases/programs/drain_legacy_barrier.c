// Two streams that are ordered with the legacy stream (default flags, or the per-thread default streams of
// two threads: argument "threads"; "streams" otherwise; then how many rounds). The first holds a kernel that
// waits for the host; the host sets the flag after some rounds of work in the second. A drain that cannot end
// must leave nothing behind that orders the second after the first.
#include "case.h"
CUresult cuLaunchKernel_ptsz(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             CUstream, void **, void **);
CUresult cuStreamSynchronize_ptsz(CUstream);
static int rounds;
static CUcontext c;
static Flag flag;
static CUfunction waits, spins;
static void go(CUfunction f, uint64_t v) {
    void *p[] = {&v};
    CK(cuLaunchKernel_ptsz(f, 1, 1, 1, 1, 1, 1, 0, 0, p, 0));
}
static void *first(void *x) {
    CK(cuCtxSetCurrent(c));
    go(waits, flag.device);
    CK(cuStreamSynchronize_ptsz(0));
    return x;
}
static void *second(void *x) {
    CK(cuCtxSetCurrent(c));
    double t = now();
    for (int i = 0; i < rounds; i++) {
        go(spins, 1000000);
        CK(cuStreamSynchronize_ptsz(0));
        nap(0.05);
    }
    printf("%d rounds took %.2f s\n", rounds, now() - t);
    fflush(stdout);
    *flag.host = 1;
    return x;
}
int main(int argc, char **argv) {
    rounds = atoi(argv[2]);
    c = primary(0);
    waits = kernel("nvshare_wait_flag");
    spins = kernel("nvshare_spin");
    flag = new_flag();
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 4 * MIB));
    if (!strcmp(argv[1], "threads")) {
        pthread_t x, y;
        pthread_create(&x, 0, first, 0);
        nap(0.1);
        pthread_create(&y, 0, second, 0);
        pthread_join(y, 0);
        pthread_join(x, 0);
        return done();
    }
    CUstream a, b;
    CK(cuStreamCreate(&a, CU_STREAM_DEFAULT));
    CK(cuStreamCreate(&b, CU_STREAM_DEFAULT));
    LAUNCH1(waits, a, flag.device);
    double t = now();
    for (int i = 0; i < rounds; i++) {
        LAUNCH1(spins, b, 1000000);
        CK(cuStreamSynchronize(b));
        nap(0.05);
    }
    printf("%d rounds took %.2f s\n", rounds, now() - t);
    fflush(stdout);
    *flag.host = 1;
    CK(cuCtxSynchronize());
    return done();
}
