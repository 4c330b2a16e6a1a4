// What a program is told of a device whose size was limited by order: all answers should be of that size. A
// line on its standard input says that the order was given.
#include "case.h"
int main(void) {
    primary(0);
    printf("pid %d\n", getpid());
    fflush(stdout);
    getchar();
    size_t f, t, d;
    CK(cuMemGetInfo(&f, &t));
    CK(cuDeviceTotalMem(&d, 0));
    printf("cuMemGetInfo: %zu of %zu MiB; cuDeviceTotalMem: %zu MiB\n", f >> 20, t >> 20, d >> 20);
    CUdeviceptr p;
    CUresult e = cuMemAlloc(&p, t + 16 * MIB);
    EXPECT(e == 2, "more than the limit: %d", e);
    EXPECT(d == t,
           "the device has two sizes, %zu and %zu MiB: a program that takes a part of the first fails",
           t >> 20, d >> 20);
    return done();
}
