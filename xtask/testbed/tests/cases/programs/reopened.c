// Opens the driver, uses it, closes it, and opens it again: what it looks up then is the same driver, and its memory is there.
#include "case.h"
static void *library;
#define DRIVER(name) ((__typeof__(&name))dlsym(library, #name))
static void opened(void) {
    library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        printf("no driver: %s\n", dlerror());
        exit(1);
    }
}
int main(void) {
    CUcontext context, current;
    CUdeviceptr p, more;
    unsigned word = 0;
    opened();
    CK(DRIVER(cuInit)(0));
    CK(DRIVER(cuDevicePrimaryCtxRetain)(&context, 0));
    CK(DRIVER(cuCtxSetCurrent)(context));
    CK(DRIVER(cuMemAlloc_v2)(&p, 16 * MIB));
    CK(DRIVER(cuMemsetD8_v2)(p, 1, 16 * MIB));
    for (int i = 1; i <= 50; i++) {
        dlclose(library);
        nap(0.002);
        opened();
        CK(DRIVER(cuCtxGetCurrent)(&current));
        EXPECT(current == context, "another context");
        CK(DRIVER(cuMemAlloc_v2)(&more, MIB));
        CK(DRIVER(cuMemcpyDtoH_v2)(&word, p + 16 * MIB - 4, 4));
        EXPECT(word == 0x01010101u * i, "round %d: %x", i, word);
        CK(DRIVER(cuMemsetD8_v2)(p, i + 1, 16 * MIB));
        CK(DRIVER(cuMemFree_v2)(more));
    }
    return done();
}
