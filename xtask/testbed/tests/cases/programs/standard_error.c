// A program whose standard error is not what it seems: standard_error broken|full|reopened|small. It works for a second and
// says on standard output whether anything happened to it.
#include "case.h"
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#define BYTES (16 * MIB)
int main(int argc, char **argv) {
    CUdeviceptr p, result;
    int ends[2];
    char path[] = "/tmp/nvshare-case-XXXXXX", page[4096] = {0};
    struct stat status;
    struct rlimit before, none;
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGPIPE, SIG_DFL);
    if (!strcmp(argv[1], "broken") || !strcmp(argv[1], "full")) {
        // In the same place as at the start: an exec of itself.
        if (argc < 3) {
            if (pipe(ends)) return 3;
            dup2(ends[1], 2);
            close(ends[1]);
            if (!strcmp(argv[1], "broken")) close(ends[0]);
            else {
                fcntl(2, F_SETFL, O_NONBLOCK);
                while (write(2, page, sizeof page) > 0);
                fcntl(2, F_SETFL, 0);
            }
            execl("/proc/self/exe", argv[0], argv[1], "again", NULL);
            return 3;
        }
    } else if (!strcmp(argv[1], "reopened")) {
        close(2);
        if (mkstemp(path) != 2) return 3;
    }
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&result, 4096));
    if (!strcmp(argv[1], "small")) {
        none = before;
        none.rlim_cur = 0;
        setrlimit(RLIMIT_FSIZE, &none);
    }
    for (double end = now() + 1; now() < end;) {
        fill(p, BYTES, 3);
        EXPECT(!wrong(p, BYTES, 3, result), "bytes were lost");
        CK(cuMemFree(p));
        CK(cuMemAlloc(&p, BYTES));
    }
    setrlimit(RLIMIT_FSIZE, &before);
    if (!strcmp(argv[1], "reopened")) {
        EXPECT(fstat(2, &status) == 0 && status.st_size == 0, "%ld bytes were written into its file", (long)status.st_size);
        unlink(path);
    }
    return done();
}
