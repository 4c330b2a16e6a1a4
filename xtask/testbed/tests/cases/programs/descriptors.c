// A program that forks, or closes whatever is open, while the library has descriptors of its own.
// descriptors forks|closes|forks_past_handlers|stops_printing [what must be among them first]
#include "case.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#define BYTES (16 * MIB)
enum { MOST = 64 };

// Numbers above the standard ones that lead to a socket, a pipe, or memory of the library's; whether `wanted` is among them.
static int others[MOST];
static int count(const char *wanted, int *there) {
    int found = 0;
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    *there = !wanted;
    while ((entry = readdir(directory)) && found < MOST) {
        char path[64], to[256];
        int number = atoi(entry->d_name);
        snprintf(path, sizeof path, "/proc/self/fd/%d", number);
        ssize_t length = readlink(path, to, sizeof to - 1);
        if (number < 3 || number == dirfd(directory) || length < 0) continue;
        to[length] = 0;
        if (wanted && strstr(to, wanted)) *there = 1;
        if (!strncmp(to, "socket:", 7) || !strncmp(to, "pipe:", 5) || strstr(to, "memfd:nvshare")) others[found++] = number;
    }
    closedir(directory);
    return found;
}

int main(int argc, char **argv) {
    CUdeviceptr p, q, result;
    int there, before = count(NULL, &there), now_open = 0;
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&result, 4096));
    fill(p, BYTES, 3);
    double end = now() + 10;
    do {
        nap(0.01);
        now_open = count(argc > 2 ? argv[2] : NULL, &there);
    } while (!there && now() < end);
    EXPECT(there, "no %s", argv[2]);
    printf("%d of ours\n", now_open - before);
    fflush(stdout);
    if (!strcmp(argv[1], "forks")) {
        int status;
        pid_t child = fork();
        if (!child) {
            int kept = count(NULL, &there);
            if (kept != before) printf("a child keeps %d\n", kept - before);
            fflush(stdout);
            _exit(kept != before);
        }
        waitpid(child, &status, 0);
        EXPECT(status == 0, "the child ended with %x", status);
    } else if (!strcmp(argv[1], "forks_past_handlers")) {
        int hung = 0;
        for (int i = 0; i < 100 && hung < 5; i++) {
            int status;
            pid_t child = syscall(SYS_fork);
            if (!child) {
                alarm(2);
                _exit(cuMemsetD8(p, 1, 8) % 256);
            }
            waitpid(child, &status, 0);
            hung += !WIFEXITED(status);
            nap(0.01);
        }
        // One or two may find a lock of the simulator's held that nobody in them gives back; at the gate every other would wait.
        EXPECT(hung < 5, "%d children hung", hung);
    } else if (!strcmp(argv[1], "stops_printing")) {
        // As a daemon that closes its output and goes on printing.
        int kept = fcntl(1, F_DUPFD, 700);
        long went = 0;
        close(0);
        close(1);
        close(2);
        for (end = now() + 4; now() < end;) {
            for (int i = 0; i < 50; i++, nap(0.0005))
                for (int number = 0; number < 3; number++) {
                    went += write(number, "a line that nobody reads\n", 25) > 0;
                    went += read(number, argv[0], 1) > 0;
                }
            failures += wrong(p, BYTES, 3, result) != 0;
        }
        dup2(kept, 1);
        EXPECT(!failures, "bytes were lost");
        // A few may meet a file in the moment before it gets a higher number; nothing that matters is in it then.
        EXPECT(went < 200, "%ld lines went somewhere", went);
    } else {
        int ours[MOST], ends[MOST];
        char byte;
        memcpy(ours, others, sizeof ours);
        for (int i = before; i < now_open; i++) close(ours[i]);
        for (int i = before; i < now_open; i++) {
            int pair[2];
            if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair)) return 3;
            ends[i] = fcntl(pair[1], F_DUPFD, 500);
            close(pair[1]);
            if (pair[0] != ours[i]) {
                dup2(pair[0], ours[i]);
                close(pair[0]);
            }
            if (write(ends[i], "m", 1) != 1) return 3;
        }
        for (end = now() + 8; now() < end;) {
            CK(cuMemAlloc(&q, 4 * BYTES));
            fill(q, 4 * BYTES, 5);
            EXPECT(!wrong(q, 4 * BYTES, 5, result), "bytes were lost");
            CK(cuMemFree(q));
            nap(0.05);
        }
        for (int i = before; i < now_open; i++) {
            EXPECT(recv(ends[i], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "something came out of %d", ours[i]);
            EXPECT(recv(ours[i], &byte, 1, MSG_DONTWAIT) == 1 && byte == 'm', "what was sent to %d is gone", ours[i]);
        }
    }
    EXPECT(!wrong(p, BYTES, 3, result), "bytes were lost");
    return done();
}
