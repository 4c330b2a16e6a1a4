// Programs that are hard to look at, with and without somebody who may use their memory without a call.
// looked_at none|engine|device plain|full|root|root-closed|name|leader|closed: full, no descriptor is left; root, another one
// without /proc; name, a mapped file whose name is no UTF-8; leader, the first thread has ended; closed, what the program
// does not know is closed.
#include "swaps.h"
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
static CUcontext context;
static const char *who, *how;
static pthread_t first;
static void map(const char *directory, const char *name) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 4096)) _exit(3);
    if (mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0) == MAP_FAILED) _exit(3);
    close(file);
    unlink(path);
}
static void become(const char *directory) {
    struct rlimit few = {64, 64};
    char path[64], link[64];
    if (!strcmp(how, "full")) {
        setrlimit(RLIMIT_NOFILE, &few);
        while (open("/dev/null", O_RDONLY) >= 0);
    }
    if (!strcmp(how, "closed") || !strcmp(how, "root-closed"))
        for (int i = 3; i < 2048; i++) {
            snprintf(path, sizeof path, "/proc/self/fd/%d", i);
            ssize_t n = readlink(path, link, sizeof link);
            if (n > 6 && !memcmp(link, "/proc/", 6)) close(i);
        }
    if (!strcmp(how, "name")) map(directory, "caf\xe9");
    rmdir(directory);
    if (!strncmp(how, "root", 4) && (chroot("/usr") || chdir("/"))) _exit(3);
    if (!strcmp(how, "leader")) {
        pthread_join(first, 0);
        nap(0.05); // The kernel is done with it a little later.
    }
}
static void *program(void *unused) {
    char directory[] = "/tmp/looked-at-XXXXXX", below[64];
    CUdeviceptr p, r;
    if (!mkdtemp(directory)) _exit(3);
    snprintf(below, sizeof below, "%s/infiniband", directory);
    CK(cuCtxSetCurrent(context));
    CK(cuMemAlloc(&p, 64 * MIB));
    CK(cuMemAlloc(&r, 4096));
    fill(p, 64 * MIB, 7);
    swapped(); // What moving needs is there afterwards.
    if (!strcmp(who, "engine")) map(directory, "libnvcuvid.so.1");
    if (!strcmp(who, "device")) {
        mkdir(below, 0700);
        map(below, "uverbs0");
        rmdir(below);
    }
    become(directory);
    puts("now");
    fflush(stdout);
    swapped();
    EXPECT(!wrong(p, 64 * MIB, 7, r), "bytes were lost");
    exit(done());
}
int main(int argc, char **argv) {
    pthread_t thread;
    order_swaps(argc > 3, argv);
    who = argv[1];
    how = argv[2];
    context = primary(0);
    if (strcmp(how, "leader")) program(0);
    first = pthread_self();
    if (pthread_create(&thread, 0, program, 0)) return 3;
    pthread_exit(0);
}
