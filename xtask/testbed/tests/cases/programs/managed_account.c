// Managed memory of twice the card, then an ordinary allocation: managed memory is no card memory, so there
// is room.
#include "case.h"
int main(void) {
    primary(0);
    size_t before = free_mib();
    CUdeviceptr m, p;
    CK(cuMemAllocManaged(&m, 2048 * MIB, CU_MEM_ATTACH_GLOBAL));
    size_t after = free_mib();
    CUresult e = cuMemAlloc(&p, 4 * MIB);
    printf("free %zu -> %zu MiB, cuMemAlloc of 4 MiB: %d\n", before, after, e);
    EXPECT(!e, "out of memory");
    EXPECT(after + 64 > before, "managed memory was taken for card memory");
    return done();
}
