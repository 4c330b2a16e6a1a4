// Managed memory that comes to the card by faults and goes to the host by prefetches: so many MiB, so many times, and once more
// to stay. Goes on when it is told to.
#include "case.h"
static void say(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
    if (getchar() == EOF) _exit(6);
    while (getchar() != '\n') {
    }
}
int main(int count, char **arguments) {
    uint64_t bytes = strtoull(count > 1 ? arguments[1] : "32", 0, 0) * MIB;
    int rounds = count > 2 ? atoi(arguments[2]) : 1;
    CUdeviceptr m;
    primary(0);
    CK(cuMemAllocManaged(&m, bytes, CU_MEM_ATTACH_GLOBAL));
    memset((void *)m, 1, bytes);
    say("ready");
    for (int round = 0; round < rounds; round++) {
        fill(m, bytes, round);
        CK(cuMemPrefetchAsync(m, bytes, CU_DEVICE_CPU, 0));
        CK(cuCtxSynchronize());
    }
    say("moved");
    fill(m, bytes, 7);
    CK(cuCtxSynchronize());
    say("there");
    return done();
}
