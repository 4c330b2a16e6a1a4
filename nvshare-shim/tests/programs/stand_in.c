// A program that is linked to a library which is no libcuda and has its functions. With DRIVER: that library, a driver of
// its own. With WRAPPER: one that passes calls on to libcuda, which it opens when it is called first.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static const char *name_of(void *address) {
    Dl_info info;
    if (!address || !dladdr(address, &info)) return "nothing";
    const char *file = strrchr(info.dli_fname, '/');
    return file ? file + 1 : info.dli_fname;
}

#ifdef DRIVER
int cuInit(unsigned flags) { return 42; }
int cuMemAdvise(unsigned long long at, size_t bytes, int advice, int device) { return 43; }
int cuDriverGetVersion(int *version) { return 44; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    *found = strcmp(name, "cuInit") ? 0 : (void *)cuInit;
    return 0;
}
#elif defined(WRAPPER)
static void *real(const char *name) {
    static void *library;
    if (!library) library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return dlsym(library, name);
}
int cuInit(unsigned flags) {
    printf("wrapped %s\n", name_of(real("cuInit")));
    return ((int (*)(unsigned))real("cuInit"))(flags);
}
int cuMemAdvise(unsigned long long at, size_t bytes, int advice, int device) {
    return ((int (*)(unsigned long long, size_t, int, int))real("cuMemAdvise"))(at, bytes, advice, device);
}
int cuDriverGetVersion(int *version) { return ((int (*)(int *))real("cuDriverGetVersion"))(version); }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long long flags, int *status) {
    *found = real(name);
    return 0;
}
#else
extern int cuInit(unsigned), cuMemAdvise(unsigned long long, size_t, int, int), cuDriverGetVersion(int *);
extern int cuGetProcAddress_v2(const char *, void **, int, unsigned long long, int *);
int main(void) {
    int version;
    void *found = 0;
    printf("cuMemAdvise %d\n", cuMemAdvise(0, 0, 0, 0)); // before it is initialised
    printf("cuInit %d\n", cuInit(0));
    printf("cuMemAdvise %d cuDriverGetVersion %d\n", cuMemAdvise(0, 0, 0, 0), cuDriverGetVersion(&version));
    cuGetProcAddress_v2("cuInit", &found, 12090, 0, 0);
    printf("address %s, %d\n", name_of(found), found ? ((int (*)(unsigned))found)(0) : -1);
    found = dlsym(RTLD_DEFAULT, "cuInit");
    printf("default %s, %d\n", name_of(found), found ? ((int (*)(unsigned))found)(0) : -1);
    // The true driver as well, by name.
    found = dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), "cuInit");
    printf("true %s, %d\n", name_of(found), ((int (*)(unsigned))found)(0));
    printf("cuMemAdvise %d\n", cuMemAdvise(0, 0, 0, 0));
    return 0;
}
#endif
