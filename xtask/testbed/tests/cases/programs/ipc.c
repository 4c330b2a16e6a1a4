// A handle for another process is given for memory of cuMemAlloc, also where no agent runs.
#include "case.h"
int main(void) {
    primary(0);
    CUdeviceptr p;
    CUipcMemHandle h;
    CK(cuMemAlloc(&p, 4 * MIB));
    CUresult e = cuIpcGetMemHandle(&h, p);
    printf("cuIpcGetMemHandle %d\n", e);
    EXPECT(!e, "refused");
    return done();
}
