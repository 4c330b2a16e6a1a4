// An application that ends each round with cudaDeviceReset and reads every byte that it wrote. Under forced swaps on a card
// that others have filled it read wrong bytes once (docs/gpu.md); this looks for it again.
//
//     nvcc -O2 -o reset reset.cu && ./reset SECONDS [MIB]
//
// The last line says how many rounds were done and how many words were wrong; status 1 if any was, 2 at an unexpected error.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>
#include <vector>

static double now() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
#define CK(call) do { cudaError_t e_ = (call); if (e_ != cudaSuccess) { printf("FAILED %s: %s (line %d, round %ld)\n", #call, cudaGetErrorName(e_), __LINE__, round_); fflush(stdout); _exit(2); } } while (0)
static long round_;
static uint64_t state;
static uint64_t random_() { state ^= state << 13; state ^= state >> 7; state ^= state << 17; return state; }

__device__ __host__ static uint64_t word(uint64_t seed, uint64_t at) {
    uint64_t x = seed * 0x9E3779B97F4A7C15ull + at; x ^= x >> 31; x *= 0xBF58476D1CE4E5B9ull; return x ^ (x >> 29);
}
__global__ void fill(uint64_t *p, uint64_t words, uint64_t seed) {
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < words; i += (uint64_t)gridDim.x * blockDim.x) p[i] = word(seed, i);
}
__global__ void change(uint64_t *p, uint64_t words, uint64_t seed, uint64_t next) {
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < words; i += (uint64_t)gridDim.x * blockDim.x) p[i] ^= word(seed, i) ^ word(next, i);
}
__global__ void verify(const uint64_t *p, uint64_t words, uint64_t seed, unsigned long long *wrong) {
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < words; i += (uint64_t)gridDim.x * blockDim.x) if (p[i] != word(seed, i)) atomicAdd(wrong, 1ull);
}

struct Buffer { uint64_t *at; uint64_t words, seed; };

int main(int n, char **arguments) {
    double end = now() + (n > 1 ? atof(arguments[1]) : 20);
    uint64_t most = (n > 2 ? atoll(arguments[2]) : 512) << 20;
    state = getpid() * 2654435761ull + time(nullptr);
    unsigned long long total = 0, waits = 0;
    for (; now() < end; round_++) {
        std::vector<cudaStream_t> streams(3);
        for (auto &s : streams) CK(cudaStreamCreateWithFlags(&s, random_() & 1 ? cudaStreamNonBlocking : cudaStreamDefault));
        unsigned long long *wrong; CK(cudaMalloc(&wrong, 8)); CK(cudaMemset(wrong, 0, 8));
        std::vector<Buffer> buffers; uint64_t taken = 0;
        while (taken < most && buffers.size() < 48) {
            uint64_t bytes = random_() % 4 ? (random_() % (most / 8)) & ~7ull : (random_() % 65536) & ~7ull; if (bytes < 8) bytes = 8;
            Buffer b = {nullptr, bytes / 8, random_()};
            cudaError_t e = cudaMalloc(&b.at, bytes);
            if (e == cudaErrorMemoryAllocation) { cudaGetLastError(); waits++; break; }
            CK(e); fill<<<264, 256, 0, streams[random_() % 3]>>>(b.at, b.words, b.seed); CK(cudaGetLastError());
            buffers.push_back(b); taken += bytes;
        }
        CK(cudaDeviceSynchronize());
        for (int step = 0; step < 6; step++) for (auto &b : buffers) {
            cudaStream_t s = streams[random_() % 3];
            if (random_() % 3 == 0) { uint64_t next = random_(); CK(cudaDeviceSynchronize()); change<<<264, 256, 0, s>>>(b.at, b.words, b.seed, next); b.seed = next; CK(cudaStreamSynchronize(s)); }
            else verify<<<264, 256, 0, s>>>(b.at, b.words, b.seed, wrong);
            CK(cudaGetLastError());
        }
        CK(cudaDeviceSynchronize());
        unsigned long long bad; CK(cudaMemcpy(&bad, wrong, 8, cudaMemcpyDeviceToHost));
        // Some are read by the host, pinned or not, some are freed, the others are left to the reset.
        for (auto &b : buffers) if (random_() % 4 == 0) {
            uint64_t bytes = b.words * 8; uint64_t *host; bool pinned = random_() & 1;
            if (pinned) CK(cudaMallocHost(&host, bytes)); else host = (uint64_t *)malloc(bytes);
            CK(cudaMemcpy(host, b.at, bytes, cudaMemcpyDeviceToHost));
            for (uint64_t i = 0; i < b.words; i++) bad += host[i] != word(b.seed, i);
            if (pinned) CK(cudaFreeHost(host)); else free(host);
            if (random_() & 1) { CK(cudaFree(b.at)); b.at = nullptr; }
        }
        if (bad) { printf("WRONG: %llu words in round %ld\n", bad, round_); fflush(stdout); }
        total += bad;
        CK(cudaDeviceReset());
    }
    printf("rounds %ld wrong %llu out-of-memory %llu\n", round_, total, waits); fflush(stdout);
    return total != 0;
}
