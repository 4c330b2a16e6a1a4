// A thread is cancelled while it is in a call of the driver that holds a cancellation point.
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

int cuInit(unsigned);
int cuEventSynchronize(void *);
int cuCtxSynchronize(void);
void null_release(void);

static int inside[2];

static void left(void *nothing) { puts("cleaned up"); }

static void *wait_for_it(void *nothing) {
    pthread_cleanup_push(left, NULL);
    if (write(inside[1], "", 1) != 1) return NULL;
    cuEventSynchronize(NULL);
    pthread_testcancel();
    pthread_cleanup_pop(0);
    return NULL;
}

int main(void) {
    pthread_t thread;
    void *result;
    char byte;
    setvbuf(stdout, NULL, _IONBF, 0);
    cuInit(0);
    if (pipe(inside) || pthread_create(&thread, NULL, wait_for_it, NULL) || read(inside[0], &byte, 1) != 1) return 1;
    usleep(100000);
    pthread_cancel(thread);
    usleep(100000);
    null_release();
    pthread_join(thread, &result);
    printf("cancelled %d\n", result == PTHREAD_CANCELED);
    printf("afterwards %d\n", cuCtxSynchronize());
    return 0;
}
