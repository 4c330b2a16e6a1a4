// A program that runs with and without CUDA: it has weak references to driver functions, in code and in data, and asks for
// them by name.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

extern int cuInit(unsigned) __attribute__((weak));
extern int cuMemAlloc_v2(unsigned long long *, unsigned long) __attribute__((weak));
int (*in_data)(unsigned long long *, unsigned long) = cuMemAlloc_v2;
static char after_it[64] = "still writable";

int main(void) {
    printf("weak %s %s %s\n", cuInit ? "there" : "none", cuMemAlloc_v2 ? "there" : "none", in_data ? "there" : "none");
    printf("next %s\n", dlsym(RTLD_NEXT, "cuInit") ? "there" : "none");
    dlerror();
    printf("default %s\n", dlsym(RTLD_DEFAULT, "cuMemAlloc_v2") ? "there" : "none");
    const char *error = dlerror();
    printf("error %s\n", error && strstr(error, "undefined symbol: cuMemAlloc_v2") ? "names it" : error ? error : "none");
    in_data = (void *)main;
    after_it[0] = 'S';
    puts(after_it);
    if (cuInit) printf("cuInit %d\n", cuInit(0));
    return 0;
}
