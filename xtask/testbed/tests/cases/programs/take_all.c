// Frameworks that take a fixed part of the card at start, in one piece. argv[1]: percent of total, or "free"
// for all that is said to be free. argv[2]: seconds of work, or "told": until there is a line to read.
#include "case.h"
#include <poll.h>
static int told(void) {
    struct pollfd in = {.fd = 0, .events = POLLIN};
    return poll(&in, 1, 0) > 0;
}
int main(int argc, char **argv) {
    size_t f, t, want;
    primary(0);
    CK(cuMemGetInfo(&f, &t));
    CUdeviceptr p = 0, r;
    CK(cuMemAlloc(&r, 8));
    kernel("nvshare_fill");
    CK(cuMemGetInfo(&f, &t));
    want = !strcmp(argv[1], "free") ? f : t / 100 * atoi(argv[1]);
    want &= ~(2 * MIB - 1);
    CUresult e = cuMemAlloc(&p, want);
    int tries = 0;
    while (e == 2 && tries < 20) {
        tries++;
        want = (want / 10 * 9) & ~(2 * MIB - 1);
        e = cuMemAlloc(&p, want);
    } // as a BFC allocator does
    printf("free %zu total %zu, got %zu MiB (%d) after %d refusals\n", f >> 20, t >> 20, want >> 20, e,
           tries);
    fflush(stdout);
    double hold = argc > 2 ? atof(argv[2]) : 0, end = now() + hold;
    int n = 0;
    uint64_t bad = 0;
    do {
        fill(p, want, 100 + n);
        bad += wrong(p, want, 100 + n, r);
        printf("round %d\n", ++n);
        fflush(stdout);
    } while (argc > 2 && !strcmp(argv[2], "told") ? !told() : now() < end);
    printf("%d iterations, %llu wrong words\n", n, (unsigned long long)bad);
    EXPECT(!bad && !e, "wrong words or no memory");
    EXPECT(tries <= 2, "%d refusals of what was said to be free", tries);
    return done();
}
