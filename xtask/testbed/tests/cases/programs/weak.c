// A program that runs with and without CUDA: driver functions are weak symbols, and it asks dlsym(RTLD_NEXT)
// too. Without libcuda in the process there must be none.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
extern int cuInit(unsigned) __attribute__((weak));
extern int cuMemAlloc_v2(unsigned long long *, unsigned long) __attribute__((weak));
int main(void) {
    void *n = dlsym(RTLD_NEXT, "cuInit"), *d = dlsym(RTLD_DEFAULT, "cuInit");
    dlerror();
    void *s = dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
    const char *e = dlerror();
    printf("weak cuInit %s, weak cuMemAlloc %s, next %s, default %s, error names the symbol that was asked "
           "for: %s\n",
           cuInit ? "there" : "none", cuMemAlloc_v2 ? "there" : "none", n ? "there" : "none",
           d ? "there" : "none", e && __builtin_strstr(e, "cuMemAlloc_v2") ? "yes" : "no");
    if (cuInit) printf("cuInit %d\n", cuInit(0));
    int bad = cuInit || n || d || !(e && __builtin_strstr(e, "cuMemAlloc_v2"));
    puts(bad ? "NOT AS EXPECTED" : "OK");
    return bad;
}
