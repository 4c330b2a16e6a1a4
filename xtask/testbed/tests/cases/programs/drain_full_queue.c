// A stream whose head waits for the host, N operations behind it (first argument), and ordinary work in
// another stream for as many seconds as the second argument says. With a third argument the operations are
// submitted by a thread of their own, which may block in the last one. No drain may wait inside the driver.
#include "case.h"
static CUcontext context;
static CUstream a;
static CUfunction spins;
static int operations;
static void *fill_up(void *x) {
    CK(cuCtxSetCurrent(context));
    for (int i = 0; i < operations; i++) LAUNCH1(spins, a, 1000);
    return x;
}
int main(int argc, char **argv) {
    operations = atoi(argv[1]);
    double limit = atof(argv[2]), worst = 0;
    context = primary(0);
    CUstream b;
    CK(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING));
    CK(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING));
    CUfunction waits = kernel("nvshare_wait_flag");
    spins = kernel("nvshare_spin");
    Flag flag = new_flag();
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 4 * MIB));
    CK(cuMemsetD8(p, 1, 4 * MIB));
    CK(cuCtxSynchronize());
    LAUNCH1(waits, a, flag.device);
    pthread_t thread;
    if (argc > 3)
        pthread_create(&thread, 0, fill_up, 0);
    else
        fill_up(0);
    nap(0.2);
    double t = now();
    int i = 0;
    do {
        double u = now();
        LAUNCH1(spins, b, 1000);
        CK(cuStreamSynchronize(b));
        u = now() - u;
        if (u > worst) worst = u;
        i++;
        nap(0.02);
    } while (now() - t < limit);
    printf("%d launches in the other stream, the longest took %.1f s\n", i, worst);
    fflush(stdout);
    *flag.host = 1;
    if (argc > 3) pthread_join(thread, 0);
    CK(cuCtxSynchronize());
    return done();
}
