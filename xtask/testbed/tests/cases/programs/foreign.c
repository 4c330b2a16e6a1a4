// A process without the library takes 10 MiB by cuMemAlloc and 20 MiB by cuMemCreate and cuMemMap; with
// "release" it then gives one of two references of the primary context back, which ends nothing. It stays for
// 6 s.
#include "case.h"
int main(int argc, char **argv) {
    primary(0);
    primary(0);
    CUdeviceptr p, v;
    CUmemAllocationProp of = on_device(0);
    CUmemGenericAllocationHandle h;
    nap(1);
    CK(cuMemAlloc(&p, 10 * MIB));
    CK(cuMemAddressReserve(&v, 20 * MIB, 0, 0, 0));
    CK(cuMemCreate(&h, 20 * MIB, &of, 0));
    CK(cuMemMap(v, 20 * MIB, 0, h, 0));
    if (argc > 1) CK(cuDevicePrimaryCtxRelease(0));
    puts("ready");
    fflush(stdout);
    nap(6);
    return 0;
}
