// The first module load of the process fails for want of memory (NVSHARE_SIM_FAULTS=module:1=oom). Later
// swap-outs must copy only what changed: holds 64 MiB that do not change for 3 s, to be run with forced
// swaps.
#include "case.h"
int main(void) {
    primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 64 * MIB));
    CK(cuMemsetD8(p, 1, 64 * MIB));
    CK(cuCtxSynchronize());
    nap(3);
    return done();
}
