/* Preloaded in front of everything: writes down what the program asks dlsym and cuGetProcAddress for, and what it gets:
   the object and the symbol that stand at the address, and how far the address is from the symbol. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *(*dlsym_t)(void *, const char *);
typedef int (*get_t)(const char *, void **, int, uint64_t);
typedef int (*get_v2_t)(const char *, void **, int, uint64_t, int *);

static get_t get;
static get_v2_t get_v2;

static void note(const char *how, const char *name, int version, unsigned long flags, int answer, void *address) {
    static FILE *out;
    if (!out) {
        out = fopen(getenv("SPY_OUTPUT"), "w");
        if (!out) abort();
        setlinebuf(out);
    }
    Dl_info found = {0};
    const char *object = "-", *symbol = "-";
    long distance = 0;
    if (address && dladdr(address, &found)) {
        const char *slash = strrchr(found.dli_fname, '/');
        object = slash ? slash + 1 : found.dli_fname;
        if (found.dli_sname) {
            symbol = found.dli_sname;
            distance = (char *)address - (char *)found.dli_saddr;
        }
    }
    fprintf(out, "%s '%s' %d %lu %d %s %s %ld\n", how, name, version, flags, answer, object, symbol, distance);
}

static int spied_get(const char *name, void **address, int version, uint64_t flags);
static int spied_get_v2(const char *name, void **address, int version, uint64_t flags, int *status);

/* The runtime asks the function for itself, and then asks that one for all the rest. */
static void stay(const char *name, void **address, int version) {
    if (strcmp(name, "cuGetProcAddress") || !*address) return;
    if (version >= 12000) {
        get_v2 = (get_v2_t)*address;
        *address = spied_get_v2;
    } else {
        get = (get_t)*address;
        *address = spied_get;
    }
}

static int spied_get(const char *name, void **address, int version, uint64_t flags) {
    int answer = get(name, address, version, flags);
    note("get", name, version, flags, answer, answer ? NULL : *address);
    if (!answer) stay(name, address, version);
    return answer;
}

static int spied_get_v2(const char *name, void **address, int version, uint64_t flags, int *status) {
    int answer = get_v2(name, address, version, flags, status);
    note("get_v2", name, version, flags, answer, answer ? NULL : *address);
    if (!answer) stay(name, address, version);
    return answer;
}

void *dlsym(void *handle, const char *name) {
    static dlsym_t next;
    if (!next) {
        /* A version would pass over the next preloaded library, whose dlsym has none. */
        dlsym_t libc = (dlsym_t)dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
        next = (dlsym_t)libc(RTLD_NEXT, "dlsym");
    }
    void *address = next(handle, name);
    if (strncmp(name, "cu", 2)) return address;
    note("dlsym", name, 0, 0, 0, address);
    if (address && !strcmp(name, "cuGetProcAddress")) {
        get = (get_t)address;
        return spied_get;
    }
    if (address && !strcmp(name, "cuGetProcAddress_v2")) {
        get_v2 = (get_v2_t)address;
        return spied_get_v2;
    }
    return address;
}
