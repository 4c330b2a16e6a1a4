// Asks a driver what of arrays can leave the card: each form is made with its mapping deferred, gets memory of a tile pool, is filled,
// read through a texture that was made before there was memory, unmapped, and mapped to other memory with the bytes of the first.
// One line for each form.
//
//     nvcc -O2 -std=c++17 -arch=native -o arrays arrays.cu -lcuda && ./arrays
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <sys/wait.h>
#include <unistd.h>

typedef unsigned long long Handle;

__global__ void spin(long long nanoseconds) {
    long long begun, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begun));
    do
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - begun < nanoseconds);
}
__global__ void look(cudaTextureObject_t texture, unsigned width, unsigned height, unsigned long long *sum) {
    unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x < width && y < height)
        atomicAdd(sum, (unsigned long long)tex2D<unsigned>(texture, x, y));
}

static CUdeviceptr sum;
static CUstream stream;

static double ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}
static int create(Handle *handle, size_t bytes, unsigned short usage) {
    CUmemAllocationProp what = {};
    what.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    what.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    what.allocFlags.usage = usage;
    return cuMemCreate(handle, (bytes + (2 << 20) - 1) & ~size_t((2 << 20) - 1), &what, 0);
}
static int place(CUarray array, CUmipmappedArray levels, CUmemOperationType how, Handle handle, size_t offset = 0) {
    CUarrayMapInfo one = {};
    one.resourceType = levels ? CU_RESOURCE_TYPE_MIPMAPPED_ARRAY : CU_RESOURCE_TYPE_ARRAY;
    if (levels)
        one.resource.mipmap = levels;
    else
        one.resource.array = array;
    one.memOperationType = how;
    one.memHandle.memHandle = handle;
    one.offset = offset;
    one.deviceBitMask = 1;
    int code = cuMemMapArrayAsync(&one, 1, stream);
    return code ? code : cuStreamSynchronize(stream);
}
// Raw bytes of a handle, if it can be mapped at an address.
static int mapped(Handle handle, size_t bytes, CUdeviceptr *at) {
    bytes = (bytes + (2 << 20) - 1) & ~size_t((2 << 20) - 1);
    CUmemAccessDesc who = {};
    who.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    who.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    int code = cuMemAddressReserve(at, bytes, 0, 0, 0);
    if (!code)
        code = cuMemMap(*at, bytes, 0, handle, 0);
    return code ? code : cuMemSetAccess(*at, bytes, &who, 1);
}
static unsigned long long seen(CUtexObject texture, unsigned width, unsigned height) {
    unsigned long long found = 0;
    cuMemsetD8(sum, 0, 8);
    look<<<dim3((width + 255) / 256, height), 256, 0, stream>>>(texture, width, height, (unsigned long long *)sum);
    int code = cuStreamSynchronize(stream);
    cuMemcpyDtoH(&found, sum, 8);
    return code ? ~0ull : found;
}
static int copied(CUarray array, void *host, size_t row, size_t rows, size_t layers, bool in) {
    CUDA_MEMCPY3D one = {};
    one.srcMemoryType = in ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_ARRAY;
    one.dstMemoryType = in ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_HOST;
    (in ? one.srcHost : *(const void **)&one.dstHost) = host;
    (in ? one.srcPitch : one.dstPitch) = row;
    (in ? one.srcHeight : one.dstHeight) = rows;
    (in ? one.dstArray : one.srcArray) = array;
    one.WidthInBytes = row, one.Height = rows, one.Depth = layers;
    return cuMemcpy3D(&one);
}

struct Form {
    const char *name;
    size_t width, height, depth;
    CUarray_format format;
    unsigned channels, flags, bytes;
};
#define DEFERRED CUDA_ARRAY3D_DEFERRED_MAPPING
static const Form FORMS[] = {
    {"2d u32", 4096, 2048, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1, 0, 4},
    {"2d small", 64, 64, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1, 0, 4},
    {"2d odd", 1001, 333, 0, CU_AD_FORMAT_UNSIGNED_INT8, 4, 0, 4},
    {"2d half4 surface", 1024, 1024, 0, CU_AD_FORMAT_HALF, 4, 2, 8},
    {"2d float4 gather", 1024, 1024, 0, CU_AD_FORMAT_FLOAT, 4, 8, 16},
    {"1d", 65536, 0, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1, 0, 4},
    {"1d layered", 4096, 0, 8, CU_AD_FORMAT_UNSIGNED_INT32, 1, 1, 4},
    {"2d layered", 1024, 1024, 4, CU_AD_FORMAT_UNSIGNED_INT32, 1, 1, 4},
    {"3d", 256, 256, 64, CU_AD_FORMAT_UNSIGNED_INT32, 1, 0, 4},
    {"3d surface", 256, 256, 64, CU_AD_FORMAT_FLOAT, 1, 2, 4},
    {"cubemap", 512, 512, 6, CU_AD_FORMAT_UNSIGNED_INT32, 1, 4, 4},
    {"cubemap layered", 256, 256, 12, CU_AD_FORMAT_UNSIGNED_INT32, 1, 5, 4},
    {"depth texture", 1024, 1024, 0, CU_AD_FORMAT_FLOAT, 1, 0x10, 4},
    {"unorm8x4", 1024, 1024, 0, CU_AD_FORMAT_UNORM_INT8X4, 4, 0, 4},
    {"bc1", 1024, 1024, 0, CU_AD_FORMAT_BC1_UNORM, 4, 0, 0},
    {"nv12", 1024, 1024, 0, CU_AD_FORMAT_NV12, 3, 0, 0},
    {"video", 1024, 1024, 0, CU_AD_FORMAT_UNSIGNED_INT8, 1, 0x100, 1},
};

static void ask(const Form &form) {
    CUDA_ARRAY3D_DESCRIPTOR what = {form.width, form.height, form.depth, form.format, form.channels, form.flags};
    CUarray array;
    int bare = cuArray3DCreate(&array, &what);
    if (!bare)
        cuArrayDestroy(array);
    what.Flags |= DEFERRED;
    int made = cuArray3DCreate(&array, &what);
    printf("%-18s bare %d deferred %d", form.name, bare, made);
    if (made)
        return;
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs = {};
    int asked = cuArrayGetMemoryRequirements(&needs, array, 0);
    printf(" needs %d %zu KiB by %zu", asked, needs.size >> 10, needs.alignment >> 10);
    CUDA_RESOURCE_DESC resource = {};
    resource.resType = CU_RESOURCE_TYPE_ARRAY;
    resource.res.array.hArray = array;
    CUDA_TEXTURE_DESC how = {};
    how.flags = CU_TRSF_READ_AS_INTEGER;
    CUtexObject texture = 0;
    bool flat = form.height && !form.depth && form.format == CU_AD_FORMAT_UNSIGNED_INT32;
    int textured = cuTexObjectCreate(&texture, &resource, &how, nullptr);
    Handle first, second;
    int created = create(&first, needs.size, CU_MEM_CREATE_USAGE_TILE_POOL);
    double begun = ms();
    int placed = place(array, nullptr, CU_MEM_OPERATION_TYPE_MAP, first);
    printf(" texture %d create %d map %d %.2f ms", textured, created, placed, ms() - begun);
    if (placed)
        return;
    size_t row = form.width * form.bytes, rows = form.height ? form.height : 1, layers = form.depth ? form.depth : 1;
    if (form.flags & 1 && !form.height)
        rows = 1;
    unsigned char *in = (unsigned char *)calloc(row * rows * layers + 1, 1), *back = (unsigned char *)calloc(row * rows * layers + 1, 1);
    for (size_t i = 0; i < row * rows * layers; i++)
        in[i] = (unsigned char)(i * 7 + (i >> 11));
    if (form.bytes)
        printf(" in %d", copied(array, in, row, rows, layers, true));
    unsigned long long before = flat ? seen(texture, (unsigned)form.width, (unsigned)form.height) : 0;
    CUdeviceptr raw, other;
    int reached = mapped(first, needs.size, &raw);
    printf(" raw %d", reached);
    printf(" second %d", create(&second, needs.size, CU_MEM_CREATE_USAGE_TILE_POOL));
    if (!reached) {
        int also = mapped(second, needs.size, &other);
        printf(" copy %d %d", also, cuMemcpyDtoD(other, raw, needs.size));
    }
    begun = ms();
    int unmapped = place(array, nullptr, CU_MEM_OPERATION_TYPE_UNMAP, 0);
    printf(" unmap %d %.2f ms again %d", unmapped, ms() - begun, place(array, nullptr, CU_MEM_OPERATION_TYPE_MAP, second));
    if (reached && form.bytes)
        printf(" (copied by rows %d)", copied(array, in, row, rows, layers, true));
    if (form.bytes) {
        printf(" back %d", copied(array, back, row, rows, layers, false));
        printf(" %s", memcmp(in, back, row * rows * layers) ? "DIFFERS" : "same");
    }
    if (flat)
        printf(" texture %s", before == seen(texture, (unsigned)form.width, (unsigned)form.height) && before != ~0ull ? "same" : "DIFFERS");
    spin<<<1, 1, 0, 0>>>(500000000);
    begun = ms();
    CUarray another;
    int beside = cuArray3DCreate(&another, &what);
    Handle third;
    int third_made = create(&third, needs.size, CU_MEM_CREATE_USAGE_TILE_POOL), third_placed = place(another, nullptr, CU_MEM_OPERATION_TYPE_MAP, third);
    printf(" beside a kernel: %d %d %d %.1f ms", beside, third_made, third_placed, ms() - begun);
    cuCtxSynchronize();
    printf(" destroyed while mapped %d %d", cuArrayDestroy(array), cuMemRelease(second));
}

// Whether what is in another context of the card can put memory behind an array, and copy it.
static void elsewhere() {
    CUDA_ARRAY3D_DESCRIPTOR what = {1024, 1024, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1, DEFERRED};
    CUcontext context;
    CUarray array;
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs = {};
    Handle handle;
    int made = cuArray3DCreate(&array, &what);
    cuArrayGetMemoryRequirements(&needs, array, 0);
    int created = create(&handle, needs.size, CU_MEM_CREATE_USAGE_TILE_POOL);
    unsigned *host = (unsigned *)calloc(1024 * 1024, 4);
    int other = cuCtxCreate(&context, nullptr, 0, 0);
    cuStreamCreate(&stream, 1);
    int placed = place(array, nullptr, CU_MEM_OPERATION_TYPE_MAP, handle);
    int in = copied(array, host, 4096, 1024, 1, true);
    int away = place(array, nullptr, CU_MEM_OPERATION_TYPE_UNMAP, 0);
    printf("another context    deferred %d create %d context %d map %d in %d unmap %d", made, created, other, placed, in, away);
}

static void levels() {
    CUDA_ARRAY3D_DESCRIPTOR what = {1024, 1024, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1, DEFERRED};
    CUmipmappedArray made;
    CUarray level;
    CUDA_ARRAY_MEMORY_REQUIREMENTS needs = {};
    Handle handle;
    int code = cuMipmappedArrayCreate(&made, &what, 5);
    int asked = cuMipmappedArrayGetMemoryRequirements(&needs, made, 0), created = create(&handle, needs.size, CU_MEM_CREATE_USAGE_TILE_POOL);
    int placed = place(nullptr, made, CU_MEM_OPERATION_TYPE_MAP, handle);
    int got = cuMipmappedArrayGetLevel(&level, made, 1);
    unsigned *host = (unsigned *)calloc(512 * 512, 4);
    printf("mipmapped          deferred %d needs %d %zu KiB create %d map %d level %d in %d", code, asked, needs.size >> 10, created, placed, got,
           copied(level, host, 512 * 4, 512, 1, true));
}

static void usages() {
    for (unsigned usage = 0; usage < 4; usage++) {
        CUmemPoolProps what = {};
        CUmemoryPool pool;
        Handle handle;
        what.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
        what.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        what.usage = (unsigned short)usage;
        printf("usage %u: pool %d handle %d; ", usage, cuMemPoolCreate(&pool, &what), create(&handle, 2 << 20, (unsigned short)usage));
    }
    int engines = -1;
    int code = cuDeviceGetAttribute(&engines, CU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_ALGORITHM_MASK, 0);
    printf("decompression %d %d", code, engines);
}

int main() {
    size_t count = sizeof FORMS / sizeof *FORMS;
    for (size_t form = 0; form < count + 3; form++) {
        fflush(stdout);
        pid_t child = fork(); // An error ends a process's contexts.
        if (!child) {
            CUcontext context;
            if (cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxSetCurrent(context) || cuStreamCreate(&stream, 1) || cuMemAlloc(&sum, 8))
                _exit(2);
            if (form < count)
                ask(FORMS[form]);
            else if (form == count)
                levels();
            else if (form == count + 1)
                elsewhere();
            else
                usages();
            printf("\n");
            fflush(stdout);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        if (status)
            printf(" ended %d\n", status);
    }
}
