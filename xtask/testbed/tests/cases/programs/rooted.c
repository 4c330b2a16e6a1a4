// A program that takes another root after it began: rooted DIRECTORY. Says "ready", and works until it is told to end.
#include "case.h"
#include <poll.h>
#define BYTES (16 * MIB)
int main(int argc, char **argv) {
    CUdeviceptr p, result;
    struct pollfd told = {0, POLLIN, 0};
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&result, 4096));
    fill(p, BYTES, 3);
    if (chroot(argv[1]) || chdir("/")) return 3;
    puts("ready");
    fflush(stdout);
    while (poll(&told, 1, 20) == 0) EXPECT(!wrong(p, BYTES, 3, result), "bytes were lost");
    return done();
}
