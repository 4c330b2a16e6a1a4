// A program that opens plugins so that their own names come first; it has a function of the same name as its plugin.
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>

#ifdef PLUGIN
int value(void) { return 2; }
int answer(void) { return value(); }
#else
int value(void) { return 1; }

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        errno = 77;
        void *plugin = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL | 8 /* RTLD_DEEPBIND */);
        int after = errno;
        int (*answer)(void) = plugin ? (int (*)(void))dlsym(plugin, "answer") : 0;
        printf("%s errno %d %s\n", argv[i], after, plugin ? "opened" : dlerror());
        if (answer) printf("answer %d\n", answer());
    }
    int count = 0;
    DIR *files = opendir("/proc/self/fd");
    while (readdir(files)) count++;
    printf("descriptors %d\n", count);
    return 0;
}
#endif
