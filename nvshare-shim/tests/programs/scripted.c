// A driver whose work is finished when the test says so, and that notes every call that would harm the application: a
// capture, the order of its work, or what has the handle of something that is gone.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_READY = 600, CAPTURE_IMPLICIT = 906, MOST = 64 };

struct stream { int taken, blocking, capturing, stuck; long submitted, finished; };
// A point in every stream that the event is behind. Handles are used again after a reset, as a context's is.
struct event { int taken, ours, captured; long behind[MOST]; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct stream streams[MOST] = {[1] = {1, 1}, [2] = {1, 1}}; // 1: legacy, 2: the per-thread default stream
static struct event events[4096];
static int violations, error, unanswered, refuse_destroy, recorded, asked;
static void (*on_destroy)(void);
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
// A thread is stuck in submitting to this stream: whoever touches it waits.
#define WAIT_WHILE_STUCK(stream) while ((stream)->stuck) pthread_cond_wait(&changed, &lock)

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
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return SUCCESS; }
// All handles of events are free again.
int cuDevicePrimaryCtxReset_v2(int device) { return LOCKED(memset(events, 0, sizeof events)); }
int cuStreamCreate(void **stream, unsigned flags) {
    return LOCKED({
        size_t i = 3;
        while (i < MOST && streams[i].taken) i++;
        streams[i] = (struct stream){.taken = 1, .blocking = !(flags & 1)};
        *stream = (void *)(0x1000 + i);
    });
}
// The number is free again at once where nothing is left to be done, so that the test can finish the rest.
int cuStreamDestroy_v2(void *stream) {
    if (refuse_destroy) return 400;
    LOCKED(of(stream)->taken = of(stream)->submitted > of(stream)->finished);
    if (on_destroy) on_destroy();
    return SUCCESS;
}
int cuStreamIsCapturing(void *stream, int *status) {
    return LOCKED({
        *status = of(stream)->capturing;
        if (of(stream) == &streams[1] && capturing(1)) rc = CAPTURE_IMPLICIT;
    });
}
static int busy(int i) { return streams[i].submitted > streams[i].finished; }
int cuStreamQuery(void *stream) {
    return LOCKED({
        asked++;
        if (capturing(0) && !relaxed) wrong("a stream is asked in a thread that is not relaxed, during a capture");
        if (of(stream)->capturing) wrong("a stream that is captured is asked");
        WAIT_WHILE_STUCK(of(stream));
        if (of(stream) == &streams[1]) {
            if (capturing(1)) { wrong("the legacy stream is asked during a capture"); rc = CAPTURE_IMPLICIT; }
            for (int i = 1; i < MOST; i++)
                if (streams[i].blocking && busy(i)) rc = NOT_READY;
        } else if (busy(of(stream) - streams)) {
            rc = NOT_READY;
        }
        if (unanswered) rc = unanswered;
        if (error) rc = error;
    });
}
int cuStreamBeginCapture_v2(void *stream, int mode) { return LOCKED(of(stream)->capturing = 1); }
int cuStreamEndCapture(void *stream, void **graph) { return LOCKED(of(stream)->capturing = 0); }
int cuLaunchKernel(void *f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned h, void *stream,
                   void **i, void **j) {
    return LOCKED({ WAIT_WHILE_STUCK(of(stream)); if (!of(stream)->capturing) of(stream)->submitted++; });
}
int cuLaunchCooperativeKernelMultiDevice(void *list, unsigned count, unsigned flags) {
    void *stream = *(void **)((char *)list + 40); // hStream of the first CUDA_LAUNCH_PARAMS
    return LOCKED(if (!of(stream)->capturing) of(stream)->submitted++);
}
int cuEventCreate(struct event **event, unsigned flags) {
    return LOCKED({
        int i = 1;
        while (events[i].taken) i++;
        events[i] = (struct event){.taken = 1, .ours = flags == 2};
        *event = &events[i];
    });
}
int cuEventDestroy_v2(struct event *event) { return LOCKED({ if (!event->taken) wrong("an event is destroyed that is gone"); event->taken = 0; }); }
int cuEventRecord(struct event *event, void *stream) {
    return LOCKED({
        if (!event->taken) wrong("an event is recorded that is gone");
        if (event->ours) {
            recorded++;
            if (capturing(0) && !relaxed) wrong("an event is recorded in a thread that is not relaxed, during a capture");
            if (of(stream)->capturing) wrong("an event is recorded in a stream that is captured");
            if (of(stream) == &streams[1]) wrong("an event is recorded in the legacy stream, and orders others");
        }
        WAIT_WHILE_STUCK(of(stream));
        event->captured = of(stream)->capturing;
        event->behind[of(stream) - streams] = of(stream)->submitted;
    });
}
int cuStreamWaitEvent(void *stream, struct event *event, unsigned flags) {
    return LOCKED(if (event->captured) of(stream)->capturing = 1);
}
int cuEventQuery(struct event *event) {
    return LOCKED({
        if (capturing(0) && !relaxed) wrong("an event is asked in a thread that is not relaxed, during a capture");
        if (!event->taken) wrong("an event is asked that is gone");
        for (int i = 1; i < MOST; i++)
            if (event->behind[i] > streams[i].finished) rc = NOT_READY;
        if (error) rc = error;
    });
}
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_SCRIPTED"; return SUCCESS; }

// For the test.
void script_finish(void *stream, long launches) { LOCKED(of(stream)->finished += launches); }
void script_fail(int code) { error = code; }
void script_unanswered(int code) { unanswered = code; }
void script_refuse_destroy(int yes) { refuse_destroy = yes; }
void script_on_destroy(void (*act)(void)) { on_destroy = act; }
void script_stick(void *stream, int yes) { LOCKED({ of(stream)->stuck = yes; pthread_cond_broadcast(&changed); }); }
int script_recorded(void) { return LOCKED({ rc = recorded; recorded = 0; }); }
int script_asked(void) { return LOCKED({ rc = asked; asked = 0; }); }
int script_violations(void) { return violations; }
