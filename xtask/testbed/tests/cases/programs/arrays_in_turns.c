// Plain memory, out and in again before each call, goes into arrays and comes out of them: by rows, by slices, by a row, in
// graphs; and through memory of graphs. With `swaps` it is swapped out and in itself.
#include "swaps.h"
enum { ROW = 256, ROWS = 64, BYTES = ROW * ROWS };
static unsigned char bytes[BYTES], back[BYTES];
static CUdeviceptr from, to;
static CUarray array, row;
static CUstream s;
static CUDA_MEMCPY3D slices(int in) {
    CUDA_MEMCPY3D c = {.WidthInBytes = ROW, .Height = ROWS, .Depth = 1};
    if (in) {
        c.srcMemoryType = CU_MEMORYTYPE_DEVICE, c.srcDevice = from, c.srcPitch = ROW;
        c.dstMemoryType = CU_MEMORYTYPE_ARRAY, c.dstArray = array;
    } else {
        c.dstMemoryType = CU_MEMORYTYPE_DEVICE, c.dstDevice = to, c.dstPitch = ROW;
        c.srcMemoryType = CU_MEMORYTYPE_ARRAY, c.srcArray = array;
    }
    return c;
}
static CUDA_MEMCPY2D rows(int in) {
    CUDA_MEMCPY2D c = {.WidthInBytes = ROW, .Height = ROWS};
    if (in) {
        c.srcMemoryType = CU_MEMORYTYPE_DEVICE, c.srcDevice = from, c.srcPitch = ROW;
        c.dstMemoryType = CU_MEMORYTYPE_ARRAY, c.dstArray = array;
    } else {
        c.dstMemoryType = CU_MEMORYTYPE_DEVICE, c.dstDevice = to, c.dstPitch = ROW;
        c.srcMemoryType = CU_MEMORYTYPE_ARRAY, c.srcArray = array;
    }
    return c;
}
static int moved;
static void out_and_in(void) { moved += swapped() == 1; }
static void begin(int round) {
    for (int i = 0; i < BYTES; i++) bytes[i] = (unsigned char)(i * 7 + round);
    CK(cuMemcpyHtoD(from, bytes, BYTES));
    CK(cuMemsetD8(to, 0, BYTES));
    CK(cuCtxSynchronize()); // the other stream waits for no default stream
    out_and_in();
}
static void check(const char *what) {
    out_and_in();
    CK(cuMemcpyDtoH(back, to, BYTES));
    EXPECT(!memcmp(bytes, back, BYTES), "other bytes after %s", what);
}
int main(int argc, char **argv) {
    order_swaps(argc > 1, argv);
    CUDA_ARRAY3D_DESCRIPTOR form = {.Width = ROW, .Height = ROWS, .Format = CU_AD_FORMAT_UNSIGNED_INT8, .NumChannels = 1};
    CUgraph g;
    CUgraphExec x;
    CUdeviceptr inside;
    primary(0);
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    CK(cuMemAlloc(&from, 4 * MIB));
    CK(cuMemAlloc(&to, 4 * MIB));
    CK(cuArray3DCreate(&array, &form));
    form.Width = BYTES, form.Height = 0;
    CK(cuArray3DCreate(&row, &form));

    CUDA_MEMCPY2D in2 = rows(1), out2 = rows(0);
    CUDA_MEMCPY3D in3 = slices(1), out3 = slices(0);
    begin(1);
    CK(cuMemcpy2D(&in2));
    out_and_in();
    CK(cuMemcpy2D(&out2));
    check("cuMemcpy2D");
    begin(2);
    CK(cuMemcpy2DAsync(&in2, s));
    CK(cuMemcpy2DAsync(&out2, s));
    CK(cuStreamSynchronize(s));
    check("cuMemcpy2DAsync");
    begin(3);
    CK(cuMemcpy3D(&in3));
    out_and_in();
    CK(cuMemcpy3D(&out3));
    check("cuMemcpy3D");
    begin(4);
    CK(cuMemcpy3DAsync(&in3, s));
    CK(cuMemcpy3DAsync(&out3, s));
    CK(cuStreamSynchronize(s));
    check("cuMemcpy3DAsync");
    begin(5);
    CK(cuMemcpyDtoA(row, 0, from, BYTES));
    out_and_in();
    CK(cuMemcpyAtoD(to, row, 0, BYTES));
    check("cuMemcpyDtoA");

    begin(6);
    CK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    CK(cuMemcpy3DAsync(&in3, s));
    CK(cuMemAllocAsync(&inside, BYTES, s));
    CUDA_MEMCPY3D half = out3;
    half.dstDevice = inside;
    CK(cuMemcpy3DAsync(&half, s));
    CK(cuMemcpyDtoDAsync(to, inside, BYTES, s));
    CK(cuMemFreeAsync(inside, s));
    CK(cuStreamEndCapture(s, &g));
    out_and_in();
    CK(cuGraphInstantiateWithFlags(&x, g, 0));
    for (int round = 7; round < 10; round++) {
        begin(round);
        CK(cuGraphLaunch(x, s));
        CK(cuStreamSynchronize(s));
        check("a graph");
    }
    EXPECT(argc < 2 || moved > 20, "only %d times anything was moved", moved);
    CK(cuArrayDestroy(array));
    CK(cuArrayDestroy(row));
    CK(cuMemFree(from));
    CK(cuMemFree(to));
    return done();
}
