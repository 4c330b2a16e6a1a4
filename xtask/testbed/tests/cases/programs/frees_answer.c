// Frees answer, whatever becomes of the calls below them.
#include "case.h"
int main(void) {
    CUdeviceptr p;
    int freed = 0, refused = 0;
    primary(0);
    for (int i = 0; i < 60; i++) {
        if (cuMemAlloc(&p, 4 * MIB)) {
            refused++;
            continue;
        }
        CK(cuMemsetD8Async(p, i, 4 * MIB, 0));
        CUresult e = cuMemFree(p);
        EXPECT(!e || e == 999, "cuMemFree answered %d", e);
        freed += !e;
        refused += e != 0;
    }
    printf("%d freed, %d refused\n", freed, refused);
    EXPECT(refused > 0, "nothing failed");
    return done();
}
