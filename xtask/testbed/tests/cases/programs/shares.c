// Two processes share memory by CUDA IPC, both ways: what one writes the other reads, at sizes that lie in one block of the card
// with others, in one piece, and in many. What an H200 answers to each call is what is expected. shares [NAP between the steps, s
// [apart: who opens it runs without a preloaded library]]
#include "case.h"
#include <sys/socket.h>
static int line;
static double rest;
static void tell(const void *what, size_t bytes) {
    if (send(line, what, bytes, MSG_NOSIGNAL) != (ssize_t)bytes)
        _exit(5);
}
static void hear(void *what, size_t bytes) {
    if (recv(line, what, bytes, 0) != (ssize_t)bytes)
        _exit(6);
}
static void step(void) {
    char c = 'x';
    nap(rest);
    tell(&c, 1);
    hear(&c, 1);
}
static unsigned char at(CUdeviceptr p) {
    unsigned char c = 0;
    CK(cuMemcpyDtoH(&c, p, 1));
    return c;
}
// Whether all of it is `value`, as far as three places tell.
static int all(CUdeviceptr p, size_t bytes, int value) {
    return at(p) == value && at(p + bytes / 2) == value && at(p + bytes - 1) == value;
}
static void set(CUdeviceptr p, size_t bytes, int value) {
    CK(cuMemsetD8(p, value, bytes));
    CK(cuCtxSynchronize());
}
static const size_t SIZES[] = {1000, MIB, 5 * MIB, 20 * MIB};
enum { COUNT = 4, ROUNDS = 6 };
static int owns(void) {
    CUdeviceptr apart, a, b, own;
    CUipcMemHandle h[3], again, interior;
    CUevent event, other;
    CUipcEventHandle e;
    primary(0);
    CK(cuMemAlloc(&apart, 24 * MIB));
    fill(apart, 24 * MIB, 5);
    for (int i = 0; i < COUNT; i++) {
        CK(cuMemAlloc(&a, SIZES[i]));
        CK(cuMemAlloc(&b, SIZES[i]));
        set(a, SIZES[i], 1);
        set(b, SIZES[i], 2);
        nap(rest);
        CK(cuIpcGetMemHandle(&h[0], a));
        CK(cuIpcGetMemHandle(&h[1], b));
        CK(cuIpcGetMemHandle(&again, a));
        CK(cuIpcGetMemHandle(&interior, a + 512));
        EXPECT(!memcmp(&h[0], &again, 64) && !memcmp(&h[0], &interior, 64), "another handle of the same");
        EXPECT(memcmp(&h[0], &h[1], 64), "one handle of two");
        EXPECT(cuIpcOpenMemHandle(&own, h[0], 1) == 201, "opened by its owner");
        h[2] = h[0];
        tell(h, sizeof h);
        step();
        for (int r = 0; r < ROUNDS; r++) {
            set(a, SIZES[i], 10 + r);
            step();
            step();
            EXPECT(all(a, SIZES[i], 20 + r), "round %d: %d and not what the opener wrote", r, at(a));
            EXPECT(all(b, SIZES[i], 2), "the neighbour");
        }
        step();
        CK(cuMemFree(a));
        step();
        step();
        CK(cuMemFree(b));
    }
    CK(cuMemAllocManaged(&own, MIB, 1));
    EXPECT(cuIpcGetMemHandle(&again, own) == 1, "managed memory");
    CK(cuEventCreate(&event, 2));
    EXPECT(cuIpcGetEventHandle(&e, event) == 400, "an event of this process");
    CK(cuEventCreate(&event, 6));
    CK(cuIpcGetEventHandle(&e, event));
    EXPECT(cuIpcOpenEventHandle(&other, e) == 201, "an event opened by its owner");
    tell(&e, sizeof e);
    step();
    CK(cuEventRecord(event, 0));
    step();
    CUdeviceptr result;
    CK(cuMemAlloc(&result, MIB));
    EXPECT(wrong(apart, 24 * MIB, 5, result) == 0, "what was not shared");
    // And it ends, while what it shares last is open.
    CK(cuMemAlloc(&a, 8 * MIB));
    set(a, 8 * MIB, 7);
    CK(cuIpcGetMemHandle(&h[0], a));
    tell(h, sizeof h);
    step();
    return done();
}
static int opens(void) {
    CUdeviceptr p[4], apart, base, result;
    CUipcMemHandle h[3];
    size_t bytes;
    CUevent event;
    CUipcEventHandle e;
    primary(0);
    CK(cuMemAlloc(&apart, 24 * MIB));
    fill(apart, 24 * MIB, 6);
    for (int i = 0; i < COUNT; i++) {
        hear(h, sizeof h);
        CK(cuIpcOpenMemHandle(&p[0], h[0], 1));
        CK(cuIpcOpenMemHandle(&p[1], h[1], 1));
        CK(cuIpcOpenMemHandle(&p[2], h[2], 1));
        EXPECT(p[0] == p[2] && p[0] != p[1], "opened again elsewhere");
        EXPECT(cuIpcOpenMemHandle(&p[3], h[0], 0) == 1, "opened with no flag");
        CK(cuMemGetAddressRange(&base, &bytes, p[0] + SIZES[i] - 1));
        EXPECT(base == p[0] && bytes == SIZES[i], "%zu bytes", bytes);
        EXPECT(all(p[0], SIZES[i], 1) && all(p[1], SIZES[i], 2), "what the owner wrote before");
        step();
        for (int r = 0; r < ROUNDS; r++) {
            step();
            EXPECT(all(p[0], SIZES[i], 10 + r), "round %d: %d and not what the owner wrote", r, at(p[0]));
            set(p[0], SIZES[i], 20 + r);
            step();
        }
        EXPECT(cuMemFree(p[0]) == 1, "freed by who opened it");
        EXPECT(cuIpcCloseMemHandle(p[0] + 256) == 1, "closed in the middle");
        step();
        step();
        EXPECT(all(p[0], SIZES[i], 20 + ROUNDS - 1), "after the owner's free");
        CK(cuIpcCloseMemHandle(p[0]));
        CK(cuIpcCloseMemHandle(p[0]));
        EXPECT(cuIpcCloseMemHandle(p[0]) == 1, "closed once too often");
        CK(cuIpcCloseMemHandle(p[1]));
        if (SIZES[i] > 2 * MIB)
            EXPECT(cuIpcOpenMemHandle(&p[0], h[0], 1) == 1, "opened after its end");
        step();
    }
    hear(&e, sizeof e);
    CK(cuIpcOpenEventHandle(&event, e));
    CK(cuEventQuery(event));
    step();
    step();
    CK(cuEventQuery(event));
    CK(cuStreamWaitEvent(0, event, 0));
    CK(cuEventDestroy(event));
    hear(h, sizeof h);
    CK(cuIpcOpenMemHandle(&p[0], h[0], 1));
    step();
    nap(0.5);
    EXPECT(all(p[0], 8 * MIB, 7), "after the owner's end");
    CK(cuIpcCloseMemHandle(p[0]));
    CK(cuMemAlloc(&result, MIB));
    EXPECT(wrong(apart, 24 * MIB, 6, result) == 0, "what was not shared");
    return done();
}
int main(int argc, char **argv) {
    int both[2], status = 0;
    rest = argc > 1 ? atof(argv[1]) : 0;
    if (argc > 3) {
        line = atoi(argv[3]);
        int opened = opens();
        wait(&status);
        return opened || status ? 1 : 0;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, both))
        return 64;
    pid_t child = fork();
    line = both[child == 0];
    close(both[child != 0]);
    if (child == 0)
        return owns();
    if (argc > 2 && !strcmp(argv[2], "apart")) {
        char number[16];
        snprintf(number, sizeof number, "%d", line);
        unsetenv("LD_PRELOAD");
        execl("/proc/self/exe", argv[0], argv[1], "opens", number, (char *)0);
        return 65;
    }
    int opened = opens();
    waitpid(child, &status, 0);
    return opened || status ? 1 : 0;
}
