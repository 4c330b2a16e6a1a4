// Arrays of every form, written, out and in again, read, written while they are out, ended while they are out. arrays_leave swaps
#include "swaps.h"
enum { U8 = CU_AD_FORMAT_UNSIGNED_INT8, U32 = CU_AD_FORMAT_UNSIGNED_INT32, F16 = CU_AD_FORMAT_HALF, F32 = CU_AD_FORMAT_FLOAT };
static const struct {
    const char *name;
    CUDA_ARRAY3D_DESCRIPTOR form;
    size_t element;
} FORMS[] = {
    {"rows", {2048, 2048, 0, F32, 1, 0}, 4},
    {"odd rows", {1001, 2001, 0, U8, 4, 0}, 4},
    {"a surface", {700, 900, 0, F16, 4, CUDA_ARRAY3D_SURFACE_LDST}, 8},
    {"layers", {512, 512, 4, U32, 1, CUDA_ARRAY3D_LAYERED}, 4},
    {"slices", {128, 128, 64, U32, 1, 0}, 4},
    {"a cube", {512, 512, 6, U8, 4, CUDA_ARRAY3D_CUBEMAP}, 4},
    {"small", {64, 64, 0, F32, 1, 0}, 4},
};
static unsigned char *bytes, *back;
static CUDA_MEMCPY3D copy(CUarray array, void *host, size_t row, size_t rows, size_t slices, int in) {
    CUDA_MEMCPY3D c = {.WidthInBytes = row, .Height = rows, .Depth = slices};
    if (in) {
        c.srcMemoryType = CU_MEMORYTYPE_HOST, c.srcHost = host, c.srcPitch = row, c.srcHeight = rows;
        c.dstMemoryType = CU_MEMORYTYPE_ARRAY, c.dstArray = array;
    } else {
        c.dstMemoryType = CU_MEMORYTYPE_HOST, c.dstHost = host, c.dstPitch = row, c.dstHeight = rows;
        c.srcMemoryType = CU_MEMORYTYPE_ARRAY, c.srcArray = array;
    }
    return c;
}
static void into(CUarray array, size_t row, size_t rows, size_t slices, int value) {
    for (size_t i = 0; i < row * rows * slices; i++) bytes[i] = (unsigned char)(i * 7 + (i >> 13) + value);
    CUDA_MEMCPY3D c = copy(array, bytes, row, rows, slices, 1);
    CK(cuMemcpy3D(&c));
}
static void check(const char *name, CUarray array, size_t row, size_t rows, size_t slices) {
    CUDA_MEMCPY3D c = copy(array, back, row, rows, slices, 0);
    memset(back, 0, row * rows * slices);
    CK(cuMemcpy3D(&c));
    EXPECT(!memcmp(bytes, back, row * rows * slices), "%s: other bytes", name);
}
static int leaves;
static void form(int i) {
    CUDA_ARRAY3D_DESCRIPTOR form = FORMS[i].form, told;
    const char *name = FORMS[i].name;
    size_t row = form.Width * FORMS[i].element, rows = form.Height, slices = form.Depth ? form.Depth : 1;
    int large = strcmp(name, "small");
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs;
    CUarray array;
    CK(cuArray3DCreate(&array, &form));
    CK(cuArray3DGetDescriptor(&told, array));
    EXPECT(told.Flags == form.Flags && told.Width == form.Width && told.Depth == form.Depth, "%s: told as another", name);
    EXPECT(cuArrayGetMemoryRequirements(&needs, array, 0) == 1, "%s: its requirements", name);
    CUarrayMapInfo map = {.resourceType = CU_RESOURCE_TYPE_ARRAY, .resource.array = array, .memOperationType = CU_MEM_OPERATION_TYPE_UNMAP,
                          .deviceBitMask = 1};
    EXPECT(cuMemMapArrayAsync(&map, 1, 0) == 1, "%s: unmapped", name);
    into(array, row, rows, slices, i);
    leaves += ordered('s') == 1;
    check(name, array, row, rows, slices);
    leaves += ordered('o') == 1;
    into(array, row, rows, slices, i + 1);
    leaves += ordered('s') == 1;
    leaves += ordered('s') == 1;
    check(name, array, row, rows, slices);
    size_t before = free_mib();
    int out = ordered('o');
    EXPECT(out < 0 || !large || free_mib() >= before + row * rows * slices / MIB, "%s: it does not leave", name);
    CK(cuArrayDestroy(array));
}
static void levels(void) {
    CUDA_ARRAY3D_DESCRIPTOR form = {1024, 1024, 0, U32, 1, 0}, told;
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs;
    CUmipmappedArray levels;
    CUarray level;
    CK(cuMipmappedArrayCreate(&levels, &form, 3));
    EXPECT(cuMipmappedArrayGetMemoryRequirements(&needs, levels, 0) == 1, "its requirements");
    for (unsigned l = 0; l < 3; l++) {
        CK(cuMipmappedArrayGetLevel(&level, levels, l));
        CK(cuArray3DGetDescriptor(&told, level));
        EXPECT(told.Flags == 0 && told.Width == 1024u >> l, "level %u: told as another", l);
        into(level, 4096 >> l, 1024 >> l, 1, l);
    }
    leaves += ordered('s') == 1;
    for (unsigned l = 0; l < 3; l++) {
        for (size_t i = 0; i < (4096 >> l) * (1024 >> l); i++) bytes[i] = (unsigned char)(i * 7 + (i >> 13) + l);
        CK(cuMipmappedArrayGetLevel(&level, levels, l));
        check("a level", level, 4096 >> l, 1024 >> l, 1);
    }
    CK(cuMipmappedArrayDestroy(levels));
}
// One whose context ends while it is out; those of the other context stay.
static void context(void) {
    CUDA_ARRAY3D_DESCRIPTOR form = {2048, 2048, 0, F32, 1, 0};
    CUcontext first, other;
    CUarray stays, goes;
    CUdeviceptr p;
    CK(cuCtxGetCurrent(&first));
    CK(cuArray3DCreate(&stays, &form));
    into(stays, 8192, 2048, 1, 9);
    CK(cuCtxCreate(&other, 0, 0));
    CK(cuArray3DCreate(&goes, &form));
    CK(cuMemAlloc(&p, 4 * MIB));
    ordered('o');
    CK(cuCtxDestroy(other));
    CK(cuCtxSetCurrent(first));
    check("beside a context that ended", stays, 8192, 2048, 1);
    ordered('o');
    CK(cuArrayDestroy(stays));
}
int main(int argc, char **argv) {
    order_swaps(argc > 1, argv);
    CUdeviceptr p;
    primary(0);
    CK(cuMemAlloc(&p, 4096));
    bytes = malloc(32 * MIB), back = malloc(32 * MIB);
    size_t before = free_mib();
    for (size_t i = 0; i < sizeof FORMS / sizeof *FORMS; i++) form(i);
    levels();
    context();
    EXPECT(argc < 2 || leaves > 25, "only %d times anything left", leaves);
    ordered('s');
    EXPECT(free_mib() + 1 >= before, "%zu MiB were free, and %zu are", before, free_mib());
    CK(cuMemFree(p));
    return done();
}
