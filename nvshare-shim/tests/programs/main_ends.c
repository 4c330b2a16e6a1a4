// Its main thread ends before its last one.
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

int cuInit(unsigned);
int cuCtxSynchronize(void);

static void *work(void *nothing) {
    usleep(300000);
    printf("worked %d\n", cuCtxSynchronize());
    fflush(stdout);
    return NULL;
}

int main(void) {
    pthread_t thread;
    alarm(20);
    printf("began %d\n", cuInit(0));
    pthread_create(&thread, NULL, work, NULL);
    pthread_exit(NULL);
}
