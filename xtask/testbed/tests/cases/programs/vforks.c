// Starts other programs by vfork, the child of which runs in this process's memory, while a second thread works.
#include "case.h"
static CUcontext context;
static volatile int over;
static void *works(void *unused) {
    CUdeviceptr p, result;
    CK(cuCtxSetCurrent(context));
    CK(cuMemAlloc(&p, 16 * MIB));
    CK(cuMemAlloc(&result, MIB));
    for (int i = 0; !over; i++) {
        fill(p, 16 * MIB, i);
        EXPECT(wrong(p, 16 * MIB, i, result) == 0, "round %d", i);
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    context = primary(0);
    pthread_create(&thread, NULL, works, NULL);
    for (int i = 0; i < 200; i++) {
        int status = 0;
        pid_t child = vfork();
        if (child == 0) {
            execl(i % 2 ? "/bin/true" : "/nowhere", "true", (char *)0);
            _exit(44);
        }
        EXPECT(child > 0 && waitpid(child, &status, 0) == child, "no child");
        EXPECT(status == (i % 2 ? 0 : 44 << 8), "its status %x", status);
    }
    over = 1;
    pthread_join(thread, NULL);
    return done();
}
