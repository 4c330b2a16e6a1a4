// What calls cost the application: median and 99th percentile in microseconds, a line each. Run it bare and with the library
// preloaded, in turns, and compare within one machine.
//
//     nvcc -O2 -o costs costs.cu -lcuda && ./costs
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cuda.h>
#include <ctime>
#include <functional>
#include <unistd.h>
#include <vector>

static double now() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }
#define CK(call) do { CUresult r_ = (call); if (r_) { printf("FAILED %d %s\n", (int)r_, #call); fflush(stdout); _exit(2); } } while (0)

static void measure(const char *what, int times, const std::function<void()> &act, const std::function<void()> &after = [] {}) {
    for (int i = 0; i < times / 10 + 1; i++) { act(); after(); }
    std::vector<double> took;
    for (int i = 0; i < times; i++) { double t = now(); act(); took.push_back(now() - t); after(); }
    std::sort(took.begin(), took.end());
    printf("%-36s p50 %9.2f p99 %9.2f\n", what, took[times / 2], took[times * 99 / 100]); fflush(stdout);
}

__global__ void nothing() {}

int main() {
    CUcontext context; CK(cuInit(0)); CK(cuDevicePrimaryCtxRetain(&context, 0)); CK(cuCtxSetCurrent(context));
    CUstream stream; CK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    CUdeviceptr base; CK(cuMemAlloc(&base, 256 << 20));
    measure("launch", 20000, [&] { nothing<<<1, 1, 0, stream>>>(); });
    CK(cuStreamSynchronize(stream));
    CUmemoryPool pool; CK(cuDeviceGetMemPool(&pool, 0)); cuuint64_t keep = ~0ull; CK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
    measure("stream-ordered pair, 1 MiB", 20000, [&] { CUdeviceptr p; CK(cuMemAllocAsync(&p, 1 << 20, stream)); CK(cuMemFreeAsync(p, stream)); });
    CK(cuStreamSynchronize(stream));
    CUdeviceptr p;
    auto pair = [&](const char *what, size_t bytes, int times) {
        char alloc[64], release[64]; snprintf(alloc, 64, "cuMemAlloc, %s", what); snprintf(release, 64, "cuMemFree, %s", what);
        measure(alloc, times, [&] { CK(cuMemAlloc(&p, bytes)); }, [&] { CK(cuMemFree(p)); });
        CK(cuMemAlloc(&p, bytes)); measure(release, times, [&] { CK(cuMemFree(p)); }, [&] { CK(cuMemAlloc(&p, bytes)); }); CK(cuMemFree(p));
    };
    pair("64 KiB", 64 << 10, 2000); pair("64 MiB", 64 << 20, 300);
    std::vector<CUstream> streams(192); for (auto &s : streams) { CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING)); nothing<<<1, 1, 0, s>>>(); }
    CK(cuCtxSynchronize());
    pair("64 KiB, 192 more streams", 64 << 10, 2000);
    auto ask = [&](const char *what, CUdeviceptr at) {
        char text[64]; snprintf(text, 64, "pointer attribute, %s", what); CUmemorytype type;
        measure(text, 20000, [&] { CK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at)); });
    };
    ask("256 MiB", base + 4096); CUdeviceptr large; CK(cuMemAlloc(&large, 16ull << 30)); ask("16 GiB", large + 4096);
    measure("cuMemGetInfo", 5000, [&] { size_t f, t; CK(cuMemGetInfo(&f, &t)); });
    CK(cuStreamBeginCapture(streams[0], CU_STREAM_CAPTURE_MODE_RELAXED));
    CUevent event; CK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING)); CK(cuEventRecord(event, stream));
    measure("stream wait beside a capture", 5000, [&] { CK(cuStreamWaitEvent(streams[1], event, 0)); });
    CUgraph graph; CK(cuStreamEndCapture(streams[0], &graph));
    return 0;
}
