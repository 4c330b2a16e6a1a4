// Memory is freed, asked for and filled in exit handlers and a destructor, with work in flight: the program ends with its own
// status. Two threads still call meanwhile.
#include "case.h"
static CUdeviceptr pieces[4];
static CUcontext context;
static volatile int over;
static void *works(void *unused) {
    CUdeviceptr at;
    if (cuCtxSetCurrent(context))
        return unused;
    while (!over) {
        // After the driver's own end every call is refused; what matters is that it answers.
        if (!cuMemAlloc(&at, 4 * MIB)) {
            cuMemsetD8Async(at, 5, 4 * MIB, 0);
            cuMemFree(at);
        }
    }
    return unused;
}
static void late(void) {
    CUdeviceptr at = 0;
    cuMemFree(pieces[0]);
    cuMemFree(pieces[1]);
    if (!cuMemAlloc(&at, MIB))
        cuMemsetD8(at, 1, MIB);
    cuCtxSynchronize();
}
__attribute__((destructor)) static void last(void) {
    cuMemFree(pieces[2]);
    cuCtxSynchronize();
    over = 1;
}
int main(void) {
    pthread_t threads[2];
    atexit(late);
    context = primary(0);
    for (int i = 0; i < 4; i++) {
        CK(cuMemAlloc(&pieces[i], 16 * MIB));
        CK(cuMemsetD8(pieces[i], 1, 16 * MIB));
    }
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, works, NULL);
    nap(0.2);
    for (int i = 0; i < 400; i++)
        CK(cuMemsetD8Async(pieces[3], 3, 16 * MIB, 0));
    exit(43);
}
