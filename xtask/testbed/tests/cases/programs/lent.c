// One process lends memory to another by CUDA IPC, which closes it, opens it again, loses the sockets that it did not open, and
// ends without a word. Says what has happened, and goes on when it is told to.
#include "case.h"
#include <dirent.h>
#include <sys/socket.h>
#define BYTES (8 * MIB)
static int line;
static char order(void) {
    char what = 0;
    if (recv(line, &what, 1, 0) != 1) _exit(6);
    return what;
}
static void done_with(const char *what) {
    if (send(line, what, 1, MSG_NOSIGNAL) != 1) _exit(5);
}
static int opens(void) {
    CUipcMemHandle handle;
    CUdeviceptr p, result;
    primary(0);
    CK(cuMemAlloc(&result, 4096));
    if (recv(line, &handle, sizeof handle, 0) != sizeof handle) return 6;
    for (int seed = 3;; done_with("y"))
        switch (order()) {
        case 'o':
            CK(cuIpcOpenMemHandle(&p, handle, 1));
            EXPECT(!wrong(p, BYTES, seed, result), "other bytes than the owner's, or those of before");
            fill(p, BYTES, ++seed);
            CK(cuCtxSynchronize());
            break;
        case 'c':
            CK(cuIpcCloseMemHandle(p));
            break;
        case 's': {
            DIR *directory = opendir("/proc/self/fd");
            for (struct dirent *entry; (entry = readdir(directory));) {
                char path[64], to[64] = "";
                snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
                int number = atoi(entry->d_name), sockets = readlink(path, to, sizeof to - 1) > 0 && !strncmp(to, "socket:", 7);
                if (sockets && number != line) close(number);
            }
            closedir(directory);
            break;
        }
        case 'w':
            fill(p, BYTES, ++seed);
            CK(cuCtxSynchronize());
            break;
        default:
            _exit(failures);
        }
}
static void wait_here(const char *what) {
    char told[8];
    puts(what);
    fflush(stdout);
    if (!fgets(told, sizeof told, stdin)) _exit(3);
}
static void next(const char *what, char the_order) {
    wait_here(what);
    done_with(&the_order);
    if (the_order != 'e') order();
}
int main(void) {
    int both[2], status;
    CUdeviceptr p, other, result;
    CUipcMemHandle handle;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, both)) return 64;
    pid_t child = fork();
    line = both[child == 0];
    close(both[child != 0]);
    if (child == 0) return opens();
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&other, BYTES));
    CK(cuMemAlloc(&result, 4096));
    fill(p, BYTES, 3);
    fill(other, BYTES, 9);
    CK(cuCtxSynchronize());
    CK(cuIpcGetMemHandle(&handle, p));
    if (send(line, &handle, sizeof handle, 0) != sizeof handle) return 5;
    printf("owner %d\n", getpid());
    next("named", 'o');
    next("open", 'c');
    next("closed", 'o');
    next("open again", 's');
    next("lost", 'w');
    next("written", 'e');
    waitpid(child, &status, 0);
    EXPECT(!status, "the other ended with %x", status);
    wait_here("ended");
    EXPECT(!wrong(p, BYTES, 6, result) && !wrong(other, BYTES, 9, result), "bytes were lost");
    return done();
}
