// A driver whose work is finished when the test says so, and that notes every call that would harm a capture.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_READY = 600, CAPTURE_IMPLICIT = 906, MOST = 32 };

struct stream { int taken, blocking, capturing; long submitted, finished; };
// A point in every stream that the event is behind.
struct event { long behind[MOST]; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stream streams[MOST] = {[1] = {1, 1}, [2] = {1, 1}}; // 1: legacy, 2: the per-thread default stream
static int violations, error, unmarkable;
static _Thread_local int relaxed;
#define CONTEXT ((void *)0x100)

static struct stream *of(void *handle) {
    size_t number = (size_t)handle;
    return &streams[number == 0 ? 1 : number < 3 ? number : number - 0x1000];
}
static int capturing(int blocking_only) {
    for (int i = 1; i < MOST; i++)
        if (streams[i].capturing && (streams[i].blocking || !blocking_only)) return 1;
    return 0;
}
static void wrong(const char *what) {
    violations++;
    fprintf(stderr, "scripted driver: %s\n", what);
}
#define LOCKED(...) ({ pthread_mutex_lock(&lock); int rc = SUCCESS; __VA_ARGS__; pthread_mutex_unlock(&lock); rc; })

int cuInit(unsigned flags) { return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = CONTEXT; return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = CONTEXT; return SUCCESS; }
int cuCtxPushCurrent_v2(void *context) { return context == CONTEXT ? SUCCESS : 201; }
int cuCtxPopCurrent_v2(void **context) { *context = CONTEXT; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = 0; return SUCCESS; }
int cuStreamGetCtx(void *stream, void **context) { *context = CONTEXT; return SUCCESS; }
int cuThreadExchangeStreamCaptureMode(int *mode) {
    int before = relaxed ? 2 : 0;
    relaxed = *mode == 2;
    *mode = before;
    return SUCCESS;
}
int cuStreamCreate(void **stream, unsigned flags) {
    return LOCKED({
        size_t i = 3;
        while (i < MOST && streams[i].taken) i++;
        streams[i] = (struct stream){.taken = 1, .blocking = !(flags & 1)};
        *stream = (void *)(0x1000 + i);
    });
}
// The number stays taken, so that what is still to be done can be finished.
int cuStreamDestroy_v2(void *stream) { return SUCCESS; }
int cuStreamIsCapturing(void *stream, int *status) {
    return LOCKED({
        *status = of(stream)->capturing;
        if (of(stream) == &streams[1] && capturing(1)) rc = CAPTURE_IMPLICIT;
    });
}
int cuStreamBeginCapture_v2(void *stream, int mode) { return LOCKED(of(stream)->capturing = 1); }
int cuStreamEndCapture(void *stream, void **graph) { return LOCKED(of(stream)->capturing = 0); }
int cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned h, void *stream,
                   void **i, void **j) {
    return LOCKED(if (!of(stream)->capturing) of(stream)->submitted++);
}
int cuEventCreate(void **event, unsigned flags) { if (unmarkable) return 2; *event = calloc(1, sizeof(struct event)); return SUCCESS; }
int cuEventDestroy_v2(void *event) { free(event); return SUCCESS; }
int cuEventRecord(struct event *event, void *stream) {
    return LOCKED({
        if (capturing(0) && !relaxed) wrong("an event is recorded in a thread that is not relaxed, during a capture");
        if (of(stream)->capturing) wrong("an event is recorded in a stream that is captured");
        if (of(stream) == &streams[1]) {
            if (capturing(1)) { wrong("an event is recorded in the legacy stream during a capture"); rc = CAPTURE_IMPLICIT; }
            for (int i = 1; i < MOST; i++)
                if (streams[i].blocking) event->behind[i] = streams[i].submitted;
        } else {
            event->behind[of(stream) - streams] = of(stream)->submitted;
        }
    });
}
int cuEventQuery(struct event *event) {
    return LOCKED({
        if (capturing(0) && !relaxed) wrong("an event is asked in a thread that is not relaxed, during a capture");
        for (int i = 1; i < MOST; i++)
            if (event->behind[i] > streams[i].finished) rc = NOT_READY;
        if (error) rc = error;
    });
}
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_SCRIPTED"; return SUCCESS; }

// For the test.
void script_finish(void *stream, long launches) { LOCKED(of(stream)->finished += launches); }
void script_fail(int code) { error = code; }
void script_unmarkable(int yes) { unmarkable = yes; }
int script_violations(void) { return violations; }
