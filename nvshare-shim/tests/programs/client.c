// A program in each of the ways programs reach the driver. What it finds it prints, one fact a line; the tests compare.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef LINKED
extern int cuInit(unsigned), cuMemAdvise(unsigned long long, size_t, int, int), cuDriverGetVersion(int *);
#endif

typedef int launch_t(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
typedef int look_up_t(const char *, void **, int, unsigned long long, int *);
typedef int init_t(unsigned);
typedef unsigned long calls_t(const char *);

static void say(const char *what, void *address) {
    Dl_info info;
    if (!address || !dladdr(address, &info)) {
        printf("%s nothing\n", what);
        return;
    }
    const char *file = strrchr(info.dli_fname, '/');
    printf("%s %s %s\n", what, file ? file + 1 : info.dli_fname, info.dli_sname ? info.dli_sname : "?");
}

static int threads(void) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

static int descriptors(void) {
    int count = 0;
    DIR *files = opendir("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(files));) count += entry->d_name[0] != '.';
    closedir(files);
    return count - 1;
}

static void *cuda(const char *path) {
    void *library = dlopen(path ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        printf("cannot load: %s\n", dlerror());
        exit(1);
    }
    return library;
}

static pthread_key_t late;
static launch_t *launch;
static void launch_late(void *unused) {
    (void)unused;
    printf("late launch %d\n", launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0));
}
static void *thread_with_a_destructor(void *unused) {
    pthread_setspecific(late, &late);
    launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
    return unused;
}

// The counter page's word `at`, through the descriptor by which the agent would read it; a child has a copy of that.
static int kept = -1;
static unsigned long long counted(int at) {
    char path[64], link[64];
    for (int fd = 3; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n > 0 && (link[n] = 0, strstr(link, "memfd:nvshare-counters"))) {
            unsigned long long word = 0;
            if (kept < 0) kept = dup(fd);
            if (pread(fd, &word, 8, at * 8) == 8) return word;
        }
    }
    unsigned long long word = 0;
    return pread(kept, &word, 8, at * 8) == 8 ? word : -1ull;
}

int main(int argc, char **argv) {
    const char *role = argc > 1 ? argv[1] : "";
    if (!strcmp(role, "idle")) {
        say("global cuInit", dlsym(RTLD_DEFAULT, "cuInit"));
        say("cut", dlsym(RTLD_DEFAULT, "cut_no_such_name"));
        say("getenv", dlsym(RTLD_DEFAULT, "getenv"));
        printf("threads %d descriptors %d\n", threads(), descriptors());
    } else if (!strcmp(role, "dlsym")) {
        void *library = cuda(NULL);
        const char *names[] = {"cuInit", "cuMemAlloc_v2", "cuLaunchKernel", "cuLaunchKernel_ptsz", "cuDriverGetVersion",
                               "cuGetProcAddress_v2", "cuGraphLaunch", "cuStreamGetFlags"};
        for (unsigned i = 0; i < sizeof names / sizeof *names; i++) say(names[i], dlsym(library, names[i]));
        dlerror();
        say("missing", dlsym(library, "cuMemcpyAtoA_v2"));
        printf("dlerror %s\n", strstr(dlerror(), "undefined symbol: cuMemcpyAtoA_v2") ? "names it" : "does not");
        say("global", dlsym(RTLD_DEFAULT, "cuMemFree_v2"));
        const char *answer = getenv("PRELOAD_ANSWER"), *path = getenv("LD_LIBRARY_PATH");
        printf("preload says %s, the next one %s\n", answer ? answer : "nothing", path && *path == '/' ? "answers" : path);
    } else if (!strcmp(role, "procaddress")) {
        look_up_t *look_up = (look_up_t *)dlsym(cuda(NULL), "cuGetProcAddress_v2");
        for (int i = 2; i < argc; i++)
            for (unsigned long long flags = 0; flags < 4; flags += 2) {
                void *found = NULL;
                char what[160];
                int rc = look_up(argv[i], &found, 12090, flags, NULL);
                snprintf(what, sizeof what, "%s/%llu rc %d", argv[i], flags, rc);
                say(what, found);
                if (!strcmp(argv[i], "cuGetProcAddress") && found) look_up = (look_up_t *)found;
            }
    } else if (!strcmp(role, "plugin")) {
        void *plugin = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
        if (!plugin) return printf("cannot load: %s\n", dlerror()), 1;
        say("plugin", ((void *(*)(void))dlsym(plugin, "plugin_launch"))());
    } else if (!strcmp(role, "twice")) {
        void *first = cuda(NULL), *second = cuda(argv[2]);
        say("first", dlsym(first, "cuLaunchKernel"));
        say("second", dlsym(second, "cuLaunchKernel"));
    } else if (!strcmp(role, "work")) {
        void *library = cuda(NULL);
        launch = (launch_t *)dlsym(library, "cuLaunchKernel");
        calls_t *calls = (calls_t *)dlsym(library, "null_calls");
        int before = threads();
        printf("before init %d\n", launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0));
        printf("threads started before init: %d\n", threads() - before);
        ((init_t *)dlsym(library, "cuInit"))(0);
        pthread_key_create(&late, launch_late);
        for (int i = 0; i < 10; i++) {
            pthread_t thread;
            pthread_create(&thread, NULL, thread_with_a_destructor, NULL);
            pthread_join(thread, NULL);
        }
        for (int i = 0; i < 100; i++) launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
        ((int (*)(void))dlsym(library, "cuCtxSynchronize"))();
        printf("launches made %lu counted %llu\n", calls("cuLaunchKernel"), counted(9));
        printf("waits made %lu counted %llu\n", calls("cuCtxSynchronize"), counted(13));
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            for (int i = 0; i < 5; i++) launch(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
            printf("child made %lu, the page says %llu\n", calls("cuLaunchKernel"), counted(9));
            fflush(stdout);
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        printf("child %d, the page says %llu\n", status, counted(9));
    }
#ifdef LINKED
    else if (!strcmp(role, "linked")) {
        say("cuMemAdvise", (void *)cuMemAdvise);
        say("cuDriverGetVersion", (void *)cuDriverGetVersion);
        cuInit(0);
        cuMemAdvise(0, 0, 0, 0);
        printf("advice made %lu counted %llu\n", ((calls_t *)dlsym(RTLD_DEFAULT, "null_calls"))("cuMemAdvise"), counted(12));
        say("default", dlsym(RTLD_DEFAULT, "cuMemFree_v2"));
        say("next", dlsym(RTLD_NEXT, "cuMemFree_v2"));
    }
#endif
    return 0;
}
