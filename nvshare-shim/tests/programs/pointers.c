// With LIBRARY: a library with global pointers that have the names of driver functions, which it fills by look-ups, as CUEW
// does. With OTHER: a library that calls through them. Else a program that does; it is linked to the first, or, with LATER,
// opens it.
#include <dlfcn.h>
#include <stdio.h>

typedef int init_t(unsigned), count_t(int *);
#ifdef LIBRARY
init_t *cuInit;
count_t *cuDriverGetVersion;
int (*cuMemAdvise)(unsigned long long, unsigned long, int, int);
init_t **constant[] = {&cuInit}; // a relocation of another kind

int fill(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (cuInit || cuMemAdvise || *constant[0]) return 9;
    cuInit = (init_t *)dlsym(library, "cuInit");
    cuDriverGetVersion = (count_t *)dlsym(library, "cuDriverGetVersion");
    cuMemAdvise = dlsym(library, "cuMemAdvise");
    return *constant[0] == cuInit ? cuInit(0) + cuMemAdvise(0, 0, 0, 0) : 8;
}
#elif defined(OTHER)
extern init_t *cuInit;
int other(void) { return cuInit(0); }
#elif defined(LATER)
int main(int argc, char **argv) {
    for (int i = 0; i < 2; i++) {
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        int (*fill)(void) = (int (*)(void))dlsym(library, "fill");
        printf("filled %d\n", fill());
        dlclose(library);
    }
    return 0;
}
#else
extern init_t *cuInit;
extern int fill(void), other(void);
int main(void) {
    printf("before %s\n", cuInit ? "something" : "nothing");
    printf("filled %d\n", fill());
    printf("called %d %d\n", cuInit(0), other());
    return 0;
}
#endif
