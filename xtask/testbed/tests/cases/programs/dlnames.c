// Look-ups by name: names that begin with "cu" and are not the driver's, dlerror after success and after
// failure, RTLD_NEXT, RTLD_DEFAULT, dlvsym.
#include "case.h"
int cudaFooCounter = 41; // the program's own "cu..." names
int cuMyOwnFunction(void) { return 7; }
int cuMemAllocWrapper(void) { return 8; }
static const char *which(void *p) {
    Dl_info i;
    if (!p) return "null";
    if (!dladdr(p, &i)) return "?";
    const char *s = strrchr(i.dli_fname, '/');
    s = s ? s + 1 : i.dli_fname;
    return !strcmp(s, "libnvshare.so")     ? "driver-or-shim"
           : !strncmp(s, "libcuda.so", 10) ? "driver-or-shim"
                                           : s;
}
static void ask(void *h, const char *hn, const char *name) {
    dlerror();
    void *p = dlsym(h, name);
    const char *e = dlerror();
    e = e ? strdup(e) : e;
    const char *e2 = dlerror();
    const char *sym = e ? strstr(e, "undefined symbol: ") : NULL;
    printf("%-12s %-24s %-16s dlerror: %s%s\n", hn, name, which(p), e ? (sym ? sym : e) : "none",
           e2 ? " (twice)" : "");
}
int main(int argc, char **argv) {
    void *self = dlopen(NULL, RTLD_LAZY);
    const char *names[] = {"cuInit",
                           "cuMemAlloc_v2",
                           "cuMemAlloc",
                           "cuNoSuchThing",
                           "cuMyOwnFunction",
                           "cudaFooCounter",
                           "cudnnCreate",
                           "cuMemAllocWrapper",
                           "cublasCreate_v2",
                           "cuLaunchKernel_ptsz",
                           "cu",
                           "c",
                           "",
                           0};
    puts("before libcuda is loaded");
    for (int i = 0; names[i]; i++) {
        ask(self, "self", names[i]);
        ask(RTLD_DEFAULT, "default", names[i]);
        ask(RTLD_NEXT, "next", names[i]);
    }
    puts("libcuda, local");
    void *lib = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (!lib) {
        puts(dlerror());
        return 3;
    }
    for (int i = 0; names[i]; i++) {
        ask(lib, "lib", names[i]);
        ask(self, "self", names[i]);
        ask(RTLD_DEFAULT, "default", names[i]);
        ask(RTLD_NEXT, "next", names[i]);
    }
    puts("libcuda, global");
    void *glob = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    for (int i = 0; names[i]; i++) {
        ask(glob, "lib", names[i]);
        ask(RTLD_DEFAULT, "default", names[i]);
        ask(RTLD_NEXT, "next", names[i]);
    }
    puts("bad handle");
    dlerror();
    void *p = dlsym(lib, "cuInit");
    (void)p;
    int *q = dlsym(self, "cudaFooCounter");
    printf("%d\n", q ? *q : -1);
    int (*f)(void) = (int (*)(void))dlsym(self, "cuMyOwnFunction");
    printf("%d\n", f ? f() : -1);
    return 0;
}
