// A library whose constructor uses the card (static device buffers, a self-test): all of that happens inside
// dlopen, while the loader holds its lock. Another thread opens and looks up libraries at the same time.
// argv[1]: seconds of work in the constructor; argv[2]: MiB; argv[3]: seconds to wait before; argv[4]: the first
// allocation of the process is made in the constructor.
#include "case.h"
#ifdef LIBRARY
__attribute__((constructor)) static void start(void) {
    const char *s = getenv("CTOR_SECONDS");
    double seconds = s ? atof(s) : 1, end = now() + seconds;
    size_t mib = getenv("CTOR_MIB") ? atoi(getenv("CTOR_MIB")) : 64;
    primary(0);
    CUdeviceptr p, r;
    CK(cuMemAlloc(&r, 8));
    CK(cuMemAlloc(&p, mib * MIB));
    uint64_t bad = 0;
    int n = 0;
    do {
        fill(p, mib * MIB, n);
        bad += wrong(p, mib * MIB, n, r);
        n++;
        nap(0.02);
    } while (now() < end);
    printf("constructor: %llu wrong words\n", (unsigned long long)bad);
    fprintf(stderr, "%d iterations\n", n);
    fflush(stdout);
}
#else
static volatile int stop;
static void *opener(void *a) {
    while (!stop) {
        void *h = dlopen("libm.so.6", RTLD_NOW);
        dlsym(h, "cos");
        dlclose(h);
        dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
        nap(0.001);
    }
    return a;
}
int main(int argc, char **argv) {
    setenv("CTOR_SECONDS", argc > 1 ? argv[1] : "2", 1);
    if (argc > 2) setenv("CTOR_MIB", argv[2], 1);
    primary(0);
    if (argc <= 4) {
        CUdeviceptr p, r;
        CK(cuMemAlloc(&r, 8));
        CK(cuMemAlloc(&p, 8 * MIB));
        fill(p, 8 * MIB, 1);
        wrong(p, 8 * MIB, 1, r); // the card is in use already
    }
    if (argc > 3) nap(atof(argv[3]));
    pthread_t t;
    pthread_create(&t, 0, opener, 0);
    void *h = dlopen("libconstructor.so", RTLD_NOW);
    if (!h) {
        puts(dlerror());
        return 3;
    }
    stop = 1;
    pthread_join(t, 0);
    printf("loaded\n");
    return done();
}
#endif
