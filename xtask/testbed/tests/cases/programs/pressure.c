// Does everything at once, and checks every byte: threads that allocate, fill, change, copy, verify and free memory of all
// sizes in streams of their own, which come and go with work in them. Out of memory is no error, only a reason to do
// something else. With "reset" each round ends with a reset of the device.
// pressure SEED SECONDS MIB THREADS [reset]
#include "case.h"
#define BUFFERS 12
typedef struct {
    CUdeviceptr at;
    uint64_t words, seed, added;
} Buffer;
static CUmodule module;
static CUfunction fills, steps, verifies, spins;
static CUcontext context;
static uint64_t budget, held, rounds, refused;
static double stop_at;
static volatile int round_over;
static const char *MORE = ".visible .entry nvshare_step(.param .u64 a, .param .u64 b, .param .u64 c) { ret; }\n";

static uint64_t throw_dice(uint64_t *dice) {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    return *dice ^= *dice << 17;
}
// Whether the call went well; out of memory is no, anything else ends the program.
static int had(CUresult r, const char *what, int line) {
    if (r == 2) {
        __atomic_add_fetch(&refused, 1, 5);
        return 0;
    }
    if (r) {
        printf("FAILED %d %s (line %d)\n", (int)r, what, line);
        fflush(stdout);
        _exit(2);
    }
    return 1;
}
#define HAD(call) had((call), #call, __LINE__)
// A call that must be made, whatever it takes.
#define MUST(call) do { while (!HAD(call)) nap(0.001); } while (0)

static void load(void) {
    char text[4096];
    snprintf(text, sizeof text, "%s%s", PTX, MORE);
    MUST(cuModuleLoadData(&module, text));
    MUST(cuModuleGetFunction(&fills, module, "nvshare_fill"));
    MUST(cuModuleGetFunction(&steps, module, "nvshare_step"));
    MUST(cuModuleGetFunction(&verifies, module, "nvshare_verify"));
    MUST(cuModuleGetFunction(&spins, module, "nvshare_spin"));
}
static int take(Buffer *b, uint64_t bytes) {
    if (__atomic_add_fetch(&held, bytes, 5) > budget || !HAD(cuMemAlloc(&b->at, bytes))) {
        __atomic_sub_fetch(&held, bytes, 5);
        return 0;
    }
    b->words = bytes / 8;
    return 1;
}
static void give(Buffer *b, CUstream s, int in_order) {
    if (in_order) MUST(cuMemFreeAsync(b->at, s)); else MUST(cuMemFree(b->at));
    __atomic_sub_fetch(&held, b->words * 8, 5);
    b->at = 0;
}
static void check(Buffer *b, CUstream s, CUdeviceptr result, const char *when) {
    uint64_t wrong = 0;
    MUST(cuMemsetD32Async(result, 0, 2, s));
    MUST(launched(verifies, s, b->at, b->words, b->seed, 0, b->added, result));
    MUST(cuStreamSynchronize(s));
    MUST(cuMemcpyDtoH(&wrong, result, 8));
    EXPECT(!wrong, "%s: %llu of %llu words are wrong at %llx", when, (unsigned long long)wrong,
           (unsigned long long)b->words, (unsigned long long)b->at);
}
// Events that the program made after a reset are its own, whatever had their handles before it.
static CUevent guards[64];
static void make_guards(void) {
    for (int i = 0; i < 64; i++) MUST(cuEventCreate(&guards[i], 2));
}
static void check_guards(void) {
    for (int i = 0; i < 64; i++) {
        CUresult r = cuEventQuery(guards[i]);
        EXPECT(!r, "event %d of the program answers %d", i, r);
    }
}
static void *work(void *x) {
    uint64_t dice = (uint64_t)(uintptr_t)x;
    CK(cuCtxSetCurrent(context));
    Buffer all[BUFFERS] = {0}, answer = {0};
    CUstream s;
    MUST(cuStreamCreate(&s, dice >> 8 & 1 ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT));
    while (!take(&answer, 512)) nap(0.001);
    while (now() < stop_at && !round_over) {
        Buffer *b = &all[throw_dice(&dice) % BUFFERS], *other = &all[throw_dice(&dice) % BUFFERS];
        switch (throw_dice(&dice) % 9) {
        case 0:
        case 1:
        case 2:
            if (b->at) break;
            uint64_t shift = throw_dice(&dice) % 18, bytes = (64 + throw_dice(&dice) % 64) << shift;
            if (!take(b, bytes & ~7ull)) break;
            b->seed = throw_dice(&dice);
            b->added = 0;
            MUST(launched(fills, s, b->at, b->words, b->seed, 0, 0, 0));
            break;
        case 3:
            if (!b->at) break;
            uint64_t add = throw_dice(&dice);
            MUST(launched(steps, s, b->at, b->words, add, 0, 0, 0));
            b->added += add;
            break;
        case 4:
            if (b->at) check(b, s, answer.at, "in between");
            break;
        case 5:
            if (b->at) give(b, s, 0);
            break;
        case 6:
            if (b->at) give(b, s, 1);
            break;
        case 7:
            if (!b->at || !other->at || b == other || b->words > other->words) break;
            MUST(cuMemcpyDtoDAsync(other->at, b->at, b->words * 8, s));
            Buffer copied = *b;
            copied.at = other->at;
            check(&copied, s, answer.at, "a copy");
            MUST(launched(fills, s, other->at, other->words, other->seed, 0, 0, 0));
            other->added = 0;
            break;
        default:
            // The stream goes with work in it; what was submitted to it is not lost. The next one waits for it.
            MUST(launched(spins, s, 300000, 0, 0, 0, 0, 0));
            CUstream next;
            CUevent e;
            MUST(cuStreamCreate(&next, throw_dice(&dice) % 2 ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT));
            MUST(cuEventCreate(&e, 2));
            MUST(cuEventRecord(e, s));
            MUST(cuStreamWaitEvent(next, e, 0));
            MUST(cuEventDestroy(e));
            MUST(cuStreamDestroy(s));
            s = next;
        }
        __atomic_add_fetch(&rounds, 1, 5);
    }
    for (int i = 0; i < BUFFERS; i++)
        if (all[i].at) {
            check(&all[i], s, answer.at, "at the end");
            if (i % 2) give(&all[i], s, i % 4 == 1);
            else __atomic_sub_fetch(&held, all[i].words * 8, 5);  // goes with the context, or the process
        }
    __atomic_sub_fetch(&held, answer.words * 8, 5);
    return 0;
}
int main(int argc, char **argv) {
    uint64_t dice = strtoull(argv[1], 0, 10) * 0x9E3779B97F4A7C15ull | 1;
    double seconds = atof(argv[2]);
    budget = strtoull(argv[3], 0, 10) * MIB;
    int threads = atoi(argv[4]), resets = argc > 5, ended = 0;
    CK(cuInit(0));
    stop_at = now() + seconds;
    do {
        while (!HAD(cuDevicePrimaryCtxRetain(&context, 0))) nap(0.001);
        CK(cuCtxSetCurrent(context));
        make_guards();
        load();
        pthread_t of[16];
        round_over = 0;
        for (int i = 0; i < threads; i++) pthread_create(&of[i], 0, work, (void *)(uintptr_t)(throw_dice(&dice) | 1));
        double round = now() + 0.3;
        while (resets && now() < round && now() < stop_at) nap(0.01);
        round_over = resets;
        for (int i = 0; i < threads; i++) pthread_join(of[i], 0);
        check_guards();
        if (!resets) break;
        // It waits for what is still under way, and somebody may be looking at that, and at what is freed behind it.
        CUdeviceptr last[8];
        for (int i = 0; i < 8; i++) MUST(cuMemAlloc(&last[i], 64 << 10));
        for (int i = 0; i < 20; i++) MUST(launched(spins, 0, 1000000, 0, 0, 0, 0, 0));
        for (int i = 0; i < 8; i++) MUST(cuMemFreeAsync(last[i], 0));
        CK(cuDevicePrimaryCtxReset(0));
        ended++;
    } while (now() < stop_at);
    printf("%llu steps, %llu times out of memory, %d resets\n", (unsigned long long)rounds,
           (unsigned long long)refused, ended);
    return done();
}
