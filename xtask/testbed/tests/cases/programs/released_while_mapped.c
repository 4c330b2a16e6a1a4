// Create, map, release at once (as llama.cpp's pool does): the memory lives as long as it is mapped, and
// counts once: while the handle is held, after it was released, and a second later.
#include "case.h"
int main(void) {
    primary(0);
    CUmemAllocationProp of = on_device(0);
    CUmemAccessDesc access = {of.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUdeviceptr v;
    CUmemGenericAllocationHandle h;
    CK(cuMemAddressReserve(&v, 1024 * MIB, 0, 0, 0));
    nap(1);
    size_t before = free_mib(), seen[4];
    CK(cuMemCreate(&h, 256 * MIB, &of, 0));
    CK(cuMemMap(v, 256 * MIB, 0, h, 0));
    CK(cuMemSetAccess(v, 256 * MIB, &access, 1));
    seen[0] = free_mib();
    nap(1);
    seen[1] = free_mib();
    CK(cuMemRelease(h));
    CK(cuMemsetD8(v, 1, 256 * MIB));
    CK(cuCtxSynchronize());
    seen[2] = free_mib();
    nap(1);
    seen[3] = free_mib();
    printf("free %zu, mapped %zu, later %zu, released %zu, later %zu MiB\n", before, seen[0], seen[1],
           seen[2], seen[3]);
    for (int i = 0; i < 4; i++)
        EXPECT(seen[i] + 256 + 32 > before && seen[i] + 256 < before + 32,
               "256 MiB are mapped; free went from %zu to %zu, then %zu, %zu, %zu MiB", before, seen[0],
               seen[1], seen[2], seen[3]);
    return done();
}
