// A signal handler allocates, fills, reads and frees: on the thread that waits for signals and on no other, in its context.
#include "case.h"
#include <sys/syscall.h>
static CUcontext context;
static pid_t waits;
static volatile int handled, elsewhere;
static void handle(int signal) {
    CUcontext current;
    CUdeviceptr p;
    unsigned word = 0;
    if (syscall(SYS_gettid) != waits) {
        elsewhere++;
        return;
    }
    CK(cuCtxGetCurrent(&current));
    EXPECT(current == context, "the handler runs in another context");
    CK(cuMemAlloc(&p, MIB));
    CK(cuMemsetD8(p, 7, MIB));
    CK(cuMemcpyDtoH(&word, p + MIB - 4, 4));
    EXPECT(word == 0x07070707, "%x", word);
    CK(cuMemFree(p));
    handled++;
}
int main(void) {
    sigset_t blocked, open;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGUSR1, &action, 0);
    context = primary(0);
    waits = syscall(SYS_gettid);
    CUdeviceptr p, result;
    CK(cuMemAlloc(&p, 16 * MIB));
    CK(cuMemAlloc(&result, MIB));
    // From here on only: whatever thread was made before has it open.
    sigprocmask(SIG_BLOCK, &blocked, &open);
    for (int i = 0; i < 200; i++) {
        fill(p, 16 * MIB, i);
        kill(getpid(), SIGUSR1);
        int before = handled + elsewhere;
        for (double end = now() + 10; handled + elsewhere == before && now() < end;)
            sigprocmask(SIG_SETMASK, &open, 0), nap(0.001), sigprocmask(SIG_BLOCK, &blocked, 0);
        EXPECT(wrong(p, 16 * MIB, i, result) == 0, "round %d", i);
    }
    EXPECT(handled == 200 && !elsewhere, "%d handled, %d on other threads", handled, elsewhere);
    return done();
}
