// Questions about memory that may be swapped out at that moment (run it with forced swaps): each
// question has one answer, wherever the memory is (cuMemGetAccess of memory of cuMemAlloc: 1 bare).
#include "case.h"
int main(void) {
    primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 256 * MIB));
    CK(cuMemsetD8(p, 1, 256 * MIB));
    CK(cuCtxSynchronize());
    double t = now();
    long n = 0, access = 0, attributes = 0;
    int code = 0;
    for (; now() - t < 5; n++) {
        unsigned long long flags = 0;
        CUmemLocation l = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
        CUresult e = cuMemGetAccess(&flags, &l, p);
        if (e) {
            access++;
            code = e;
        }
        CUpointer_attribute at[3] = {CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                     CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
        CUcontext c = 0;
        int type = 0, device = -1;
        void *d[3] = {&c, &type, &device};
        e = cuPointerGetAttributes(3, at, d, p);
        attributes += e || type != 2 || device;
    }
    printf("%ld rounds: cuMemGetAccess failed %ld times (%d), cuPointerGetAttributes %ld\n", n, access, code,
           attributes);
    EXPECT((!access || access == n) && !attributes, "answers depend on where the memory is");
    return done();
}
