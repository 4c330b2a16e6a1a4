// Submits work and leaves by `_exit` from another thread, with no handler run, at some moment: leaves MICROSECONDS.
#include "case.h"
static useconds_t after;
static void *leaves(void *unused) {
    usleep(after);
    _exit(43);
}
int main(int argc, char **argv) {
    pthread_t thread;
    CUdeviceptr p;
    after = argc > 1 ? atoi(argv[1]) : 0;
    primary(0);
    CK(cuMemAlloc(&p, 64 * MIB));
    pthread_create(&thread, NULL, leaves, NULL);
    for (unsigned i = 0;; i++)
        CK(cuMemsetD8Async(p, i, 64 * MIB, 0));
}
