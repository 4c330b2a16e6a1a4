// A texture of memory that is out: who makes it waits until that is in, and is told what was said. textures swaps
#include "swaps.h"
enum { BYTES = 32 * MIB };
int main(int argc, char **argv) {
    order_swaps(argc > 1, argv);
    CUdeviceptr p, result;
    CUDA_RESOURCE_DESC of = {.resType = CU_RESOURCE_TYPE_LINEAR}, told = {0};
    CUDA_TEXTURE_DESC look = {0};
    CUtexObject texture;
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&result, 4096));
    fill(p, BYTES, 3);
    CK(cuCtxSynchronize());
    of.linear.devPtr = p, of.linear.format = CU_AD_FORMAT_FLOAT, of.linear.numChannels = 1;
    of.linear.sizeInBytes = BYTES;
    int out = ordered('o');
    size_t before = free_mib();
    CK(cuTexObjectCreate(&texture, &of, &look, 0));
    size_t after = free_mib();
    // Without an agent the driver is asked what is free, and that grows by what is out.
    EXPECT(argc < 2 || (out == 1 && before >= after + BYTES / MIB), "out %d, free %zu, then %zu", out, before, after);
    CK(cuTexObjectGetResourceDesc(&told, texture));
    EXPECT(told.linear.devPtr == p && told.linear.sizeInBytes == BYTES, "another resource is told");
    EXPECT(!wrong(p, BYTES, 3, result), "bytes were lost");
    CK(cuTexObjectDestroy(texture));
    CK(cuMemFree(p));
    return done();
}
