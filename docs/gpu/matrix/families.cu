// One family of device memory after another, by the runtime that nvcc links statically: each is written and read by kernels in
// rounds with pauses, so that memory can leave between them, and what was computed is printed. The same every time it runs.
//
//     nvcc -O2 -cudart static -o families families.cu && ./families FAMILY
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#define MUST(call)                                                                                                         \
    do {                                                                                                                   \
        int code = (int)(call);                                                                                            \
        if (code) {                                                                                                        \
            printf("%s: %d\n", #call, code);                                                                               \
            exit(1);                                                                                                       \
        }                                                                                                                  \
    } while (0)

constexpr size_t MIB = 1 << 20, PIECE = 96 * MIB, PIECES = 8, ROUNDS = 24, WORDS = PIECE / 4;
constexpr unsigned PAUSE = 100000;

__global__ void step(unsigned *p, size_t words, unsigned round) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x)
        p[i] = p[i] * 1664525u + 1013904223u + (unsigned)i + round;
}
__global__ void add(const unsigned *p, size_t words, unsigned long long *total) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x)
        atomicAdd(total, (unsigned long long)p[i]);
}
__global__ void look(cudaTextureObject_t texture, unsigned *p, unsigned width, size_t words) {
    for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x)
        p[i] += tex2D<unsigned>(texture, i % width, i / width);
}

static unsigned long long *total;
static cudaStream_t stream;

static void stepped(unsigned *p, unsigned round, cudaStream_t on = stream) {
    step<<<512, 256, 0, on>>>(p, WORDS, round);
    MUST(cudaGetLastError());
}
static void added(unsigned *p, cudaStream_t on = stream) {
    add<<<512, 256, 0, on>>>(p, WORDS, total);
    MUST(cudaGetLastError());
}
static void rest() {
    MUST(cudaStreamSynchronize(stream));
    usleep(PAUSE);
}
static void say() {
    unsigned long long sum;
    MUST(cudaMemcpy(&sum, total, sizeof sum, cudaMemcpyDeviceToHost));
    printf("result %llu\n", sum);
}
static unsigned *plain() {
    unsigned *p;
    MUST(cudaMalloc(&p, PIECE));
    MUST(cudaMemset(p, 1, PIECE));
    return p;
}

// What differs by the family is only where the pieces come from.
template <typename Make> static void rounds(Make make) {
    std::vector<unsigned *> pieces;
    for (size_t i = 0; i < PIECES; i++) {
        pieces.push_back((unsigned *)make());
        MUST(cudaMemsetAsync(pieces[i], (int)i, PIECE, stream));
    }
    for (unsigned round = 0; round < ROUNDS; round++, rest())
        for (unsigned *piece : pieces)
            stepped(piece, round);
    for (unsigned *piece : pieces)
        added(piece);
    MUST(cudaStreamSynchronize(stream));
    say();
}

static void *pool() {
    void *p;
    MUST(cudaMallocAsync(&p, PIECE, stream));
    return p;
}
static void *managed() {
    void *p;
    MUST(cudaMallocManaged(&p, PIECE));
    return p;
}

// Pieces come and go in two streams, as frameworks do it.
static void churn() {
    cudaStream_t other;
    cudaEvent_t done;
    MUST(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    MUST(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    unsigned *kept = (unsigned *)pool();
    MUST(cudaMemsetAsync(kept, 3, PIECE, stream));
    for (unsigned round = 0; round < ROUNDS; round++, rest())
        for (size_t i = 0; i < PIECES; i++) {
            unsigned *piece = (unsigned *)pool();
            MUST(cudaMemcpyAsync(piece, kept, PIECE, cudaMemcpyDefault, stream));
            MUST(cudaEventRecord(done, stream));
            MUST(cudaStreamWaitEvent(other, done));
            stepped(piece, round, other);
            added(piece, other);
            MUST(cudaMemcpyAsync(kept, piece, PIECE, cudaMemcpyDefault, other));
            MUST(cudaFreeAsync(piece, other));
            MUST(cudaEventRecord(done, other));
            MUST(cudaStreamWaitEvent(stream, done));
        }
    added(kept);
    MUST(cudaStreamSynchronize(stream));
    say();
}

template <typename F> static F driver(const char *name) {
    void *found = nullptr;
    cudaDriverEntryPointQueryResult how;
    MUST(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &how));
    return (F)found;
}
static void *vmm() {
    static auto create = driver<CUresult (*)(unsigned long long *, size_t, const CUmemAllocationProp *, unsigned long long)>("cuMemCreate");
    static auto reserve = driver<CUresult (*)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long)>("cuMemAddressReserve");
    static auto map = driver<CUresult (*)(CUdeviceptr, size_t, size_t, unsigned long long, unsigned long long)>("cuMemMap");
    static auto access = driver<CUresult (*)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t)>("cuMemSetAccess");
    static auto release = driver<CUresult (*)(unsigned long long)>("cuMemRelease");
    CUmemAllocationProp what = {};
    what.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    what.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    CUmemAccessDesc who = {};
    who.location = what.location;
    who.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    CUdeviceptr at;
    MUST(reserve(&at, PIECE, 0, 0, 0));
    for (size_t part = 0; part < PIECE; part += 32 * MIB) {
        unsigned long long handle;
        MUST(create(&handle, 32 * MIB, &what, 0));
        MUST(map(at + part, 32 * MIB, 0, handle, 0));
        MUST(release(handle));
    }
    MUST(access(at, PIECE, &who, 1));
    return (void *)at;
}

// A graph that allocates what it works in.
static void graph() {
    unsigned *kept = plain();
    void *inside;
    cudaGraph_t made;
    cudaGraphExec_t runs;
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    MUST(cudaMallocAsync(&inside, PIECE, stream));
    MUST(cudaMemcpyAsync(inside, kept, PIECE, cudaMemcpyDefault, stream));
    stepped((unsigned *)inside, 5);
    added((unsigned *)inside);
    MUST(cudaMemcpyAsync(kept, inside, PIECE, cudaMemcpyDefault, stream));
    MUST(cudaFreeAsync(inside, stream));
    MUST(cudaStreamEndCapture(stream, &made));
    MUST(cudaGraphInstantiate(&runs, made, 0));
    for (unsigned round = 0; round < ROUNDS; round++, rest())
        MUST(cudaGraphLaunch(runs, stream));
    say();
}

static void array() {
    constexpr unsigned WIDTH = 8192, HEIGHT = WORDS / WIDTH;
    unsigned *from = plain(), *to = plain();
    cudaArray_t array;
    cudaChannelFormatDesc format = cudaCreateChannelDesc<unsigned>();
    MUST(cudaMallocArray(&array, &format, WIDTH, HEIGHT));
    cudaResourceDesc resource = {};
    resource.resType = cudaResourceTypeArray;
    resource.res.array.array = array;
    cudaTextureDesc how = {};
    how.readMode = cudaReadModeElementType;
    cudaTextureObject_t texture;
    MUST(cudaCreateTextureObject(&texture, &resource, &how, nullptr));
    for (unsigned round = 0; round < ROUNDS; round++, rest()) {
        stepped(from, round);
        MUST(cudaMemcpy2DToArrayAsync(array, 0, 0, from, WIDTH * 4, WIDTH * 4, HEIGHT, cudaMemcpyDefault, stream));
        look<<<512, 256, 0, stream>>>(texture, to, WIDTH, (size_t)WIDTH * HEIGHT);
        MUST(cudaGetLastError());
    }
    added(to);
    MUST(cudaStreamSynchronize(stream));
    say();
}

static void whole(int line, void *what, size_t bytes, bool out) {
    if ((out ? write(line, what, bytes) : read(line, what, bytes)) != (ssize_t)bytes)
        exit(2);
}
// A second process opens each piece, changes it, and closes it.
static void opens() {
    cudaIpcMemHandle_t handle;
    for (unsigned round = 0; read(0, &handle, sizeof handle) == sizeof handle; round++) {
        void *opened;
        MUST(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess));
        stepped((unsigned *)opened, round);
        MUST(cudaStreamSynchronize(stream));
        MUST(cudaIpcCloseMemHandle(opened));
        whole(3, &round, 1, true);
    }
}
static void ipc(const char *self) {
    int there[2], back[2];
    if (pipe(there) || pipe(back))
        exit(2);
    pid_t child = fork();
    if (!child) {
        dup2(there[0], 0);
        close(there[1]);
        dup2(back[1], 3);
        execl(self, self, "opens", nullptr);
        _exit(2);
    }
    MUST(cudaStreamCreate(&stream));
    MUST(cudaMalloc(&total, sizeof *total));
    MUST(cudaMemset(total, 0, sizeof *total));
    unsigned *pieces[2] = {plain(), plain()};
    for (unsigned round = 0; round < ROUNDS; round++, rest())
        for (unsigned *piece : pieces) {
            stepped(piece, round);
            MUST(cudaStreamSynchronize(stream));
            cudaIpcMemHandle_t handle;
            char done;
            MUST(cudaIpcGetMemHandle(&handle, piece));
            whole(there[1], &handle, sizeof handle, true);
            whole(back[0], &done, 1, false);
        }
    close(there[1]);
    waitpid(child, nullptr, 0);
    for (unsigned *piece : pieces)
        added(piece);
    MUST(cudaStreamSynchronize(stream));
    say();
}

int main(int count, char **words) {
    const char *family = count > 1 ? words[1] : "";
    if (!strcmp(family, "ipc"))
        return ipc(words[0]), 0;
    MUST(cudaStreamCreate(&stream));
    MUST(cudaMalloc(&total, sizeof *total));
    MUST(cudaMemset(total, 0, sizeof *total));
    if (!strcmp(family, "plain"))
        rounds(plain);
    else if (!strcmp(family, "pool"))
        rounds(pool);
    else if (!strcmp(family, "churn"))
        churn();
    else if (!strcmp(family, "vmm"))
        rounds(vmm);
    else if (!strcmp(family, "managed"))
        rounds(managed);
    else if (!strcmp(family, "graph"))
        graph();
    else if (!strcmp(family, "array"))
        array();
    else if (!strcmp(family, "opens"))
        opens();
    else
        return fprintf(stderr, "families plain|pool|churn|vmm|managed|graph|array|ipc\n"), 2;
}
