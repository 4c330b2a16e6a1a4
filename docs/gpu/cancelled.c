// Which calls of the driver hold a cancellation point: each is made with a cancellation pending, in a process of its own.
// cc -w -O1 cancelled.c -o cancelled -lcuda -lpthread && ./cancelled; then with LD_PRELOAD=libnvshare.so.
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BIG = 64 << 20 };
static const char *ptx = ".version 7.0\n.target sm_50\n.address_size 64\n.visible .entry nothing(){ret;}\n";
static CUcontext context, other;
static CUstream stream, more;
static CUevent event, blocking;
static CUdeviceptr memory, fresh;
static CUfunction nothing;
static CUmodule module, again;
static CUgraph graph;
static CUgraphExec ready;
static char *host;
static void *pinned;
static size_t available, total;
static int which, result;

static void snooze(void *unused) { nanosleep(&(struct timespec){0, 400000000}, NULL); }
static void busy(void) { cuLaunchHostFunc(stream, snooze, NULL); }
static int launch(void) { return cuLaunchKernel(nothing, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL); }
static int fill(void) {
    int code = 0;
    for (int i = 0; i < 5000 && !code; i++) code = launch();
    return code;
}
#define CALLS(X) \
    X(busy(), cuStreamSynchronize(stream)) \
    X((busy(), cuEventRecord(event, stream)), cuEventSynchronize(event)) \
    X((busy(), cuEventRecord(blocking, stream)), cuEventSynchronize(blocking)) \
    X(busy(), cuCtxSynchronize()) \
    X(busy(), cuMemcpyDtoH(host, memory, 1 << 20)) \
    X((void)0, cuMemcpyDtoH(host, memory, BIG)) \
    X((void)0, cuMemcpyHtoD(memory, host, BIG)) \
    X(busy(), cuMemcpyHtoDAsync(memory, host, BIG, stream)) \
    X((void)0, launch()) \
    X(busy(), fill()) \
    X((void)0, cuGraphLaunch(ready, stream)) \
    X(busy(), cuStreamQuery(stream)) \
    X((void)0, cuMemAlloc(&fresh, BIG)) \
    X((void)0, cuMemFree(memory)) \
    X((void)0, cuMemHostAlloc(&pinned, BIG, 0)) \
    X((void)0, cuMemHostRegister(host, BIG, 0)) \
    X((void)0, cuMemAllocManaged(&fresh, 1 << 20, 1)) \
    X((void)0, cuModuleLoadData(&again, ptx)) \
    X((void)0, cuStreamCreate(&more, 0)) \
    X((void)0, cuStreamDestroy(stream)) \
    X((void)0, cuEventCreate(&event, 0)) \
    X((void)0, cuCtxCreate(&other, 0, 0)) \
    X((void)0, cuMemGetInfo(&available, &total)) \
    X((void)0, cuMemAllocAsync(&fresh, 1 << 20, stream)) \
    X((void)0, cuDevicePrimaryCtxReset(0))
#define NAME(before, call) #call,
#define RUN(before, call) case __COUNTER__: before; cancelled_soon(); result = call; break;
static const char *names[] = {CALLS(NAME)};

static void cancelled_soon(void) {
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    pthread_cancel(pthread_self());
}

static void *make_the_call(void *unused) {
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    cuCtxSetCurrent(context);
    switch (which) { CALLS(RUN) }
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    return NULL;
}

static int in_its_process(void) {
    pthread_t thread;
    void *end;
    cuInit(0);
    cuDevicePrimaryCtxRetain(&context, 0);
    cuCtxSetCurrent(context);
    cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
    cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
    cuEventCreate(&blocking, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC);
    cuMemAlloc(&memory, BIG);
    host = memset(malloc(BIG), 1, BIG);
    if (!cuModuleLoadData(&module, ptx)) cuModuleGetFunction(&nothing, module, "nothing");
    cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    cuMemsetD8Async(memory, 1, 64, stream);
    cuStreamEndCapture(stream, &graph);
    cuGraphInstantiateWithFlags(&ready, graph, 0);
    pthread_create(&thread, NULL, make_the_call, NULL);
    pthread_join(thread, &end);
    printf("%-50s %s, %d\n", names[which], end == PTHREAD_CANCELED ? "CANCELLED in the call" : "ran through", result);
    fflush(stdout);
    _exit(0);
}

int main(int count, char **arguments) {
    if (count > 1) {
        which = atoi(arguments[1]);
        return in_its_process();
    }
    for (int i = 0; i < sizeof names / sizeof *names; i++) {
        char number[8];
        int status;
        sprintf(number, "%d", i);
        pid_t child = fork();
        if (!child) {
            alarm(20);
            execl("/proc/self/exe", arguments[0], number, NULL);
            _exit(9);
        }
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status)) printf("%-50s DIED by signal %d\n", names[i], WTERMSIG(status));
    }
    return 0;
}
