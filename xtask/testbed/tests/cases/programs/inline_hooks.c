// Inline hooks in the driver, as communication libraries set them to hear of frees: whole instructions at the
// start of cuMemFree_v2 and cuMemAlloc_v2 move into a trampoline, a jump takes their place. The hooking
// library is linked to libcuda and finds the functions by dlsym(RTLD_NEXT), so it patches the driver itself.
// inline_hooks SECONDS near|far: installs, then allocates and frees for that long. Each hook counts for itself:
// one that hears nothing is not made up for by another, nor by what the library allocates and frees for itself. A
// free must be heard with the address that is freed, an allocation with its size, or with none.
#include "case.h"
#ifdef HOOKS
static int put32(unsigned char *at, int64_t v) {
    int32_t w = (int32_t)v;
    if (w != v) return 0;
    memcpy(at, &w, 4);
    return 1;
}
// Moves instructions of at least `need` bytes from f to t. Returns how many bytes were moved, 0 with a line
// where one is unknown.
static int move(const unsigned char *f, unsigned char *t, int need, int *len) {
    int i = 0, o = 0;
    int32_t d;
    while (i < need) {
        const unsigned char *p = f + i;
        unsigned char *q = t + o;
        if (p[0] == 0x81 && p[1] == 0x3d) {
            memcpy(q, p, 10);
            memcpy(&d, p + 2, 4);
            if (!put32(q + 2, d + (p - q))) return 0;
            i += 10;
            o += 10;
        } else if (p[0] == 0x74 || p[0] == 0x75) {
            q[0] = 0x0f;
            q[1] = p[0] + 0x10;
            if (!put32(q + 2, (p + 2 + (signed char)p[1]) - (q + 6))) return 0;
            i += 2;
            o += 6;
        } else if (p[0] == 0xe9) {
            memcpy(&d, p + 1, 4);
            q[0] = 0xe9;
            if (!put32(q + 1, (p + 5 + d) - (q + 5))) return 0;
            i += 5;
            o += 5;
        } else if (p[0] >= 0x50 && p[0] <= 0x57) {
            *q = *p;
            i++;
            o++;
        } else if (p[0] == 0x41 && p[1] >= 0x50 && p[1] <= 0x57) {
            memcpy(q, p, 2);
            i += 2;
            o += 2;
        } else if (p[0] == 0x48 && p[1] == 0x89 && p[2] == 0xe5) {
            memcpy(q, p, 3);
            i += 3;
            o += 3;
        } else if (p[0] == 0x48 && p[1] == 0x83 && p[2] == 0xec) {
            memcpy(q, p, 4);
            i += 4;
            o += 4;
        } else if (p[0] == 0x48 && p[1] == 0x81 && p[2] == 0xec) {
            memcpy(q, p, 7);
            i += 7;
            o += 7;
        } else {
            fprintf(stderr, "hook: unknown instruction %02x %02x at +%d%s\n", p[0], p[1], i,
                    p[0] == 0xcc ? " (a breakpoint that is not in the file)" : "");
            return 0;
        }
    }
    t[o] = 0xff;
    t[o + 1] = 0x25;
    memset(t + o + 2, 0, 4);
    const unsigned char *back = f + i;
    memcpy(t + o + 6, &back, 8);
    *len = i;
    return 1;
}
long hook_allocs, hook_frees;
CUdeviceptr hook_expects;
size_t hook_expects_bytes;
static CUresult (*real_free)(CUdeviceptr);
static CUresult (*real_alloc)(CUdeviceptr *, size_t);
static CUresult my_free(CUdeviceptr p) {
    if (p == hook_expects) __atomic_add_fetch(&hook_frees, 1, 5);
    return real_free(p);
}
static CUresult (*real_unmap)(CUdeviceptr, size_t);
static CUresult my_unmap(CUdeviceptr p, size_t n) { // passed by the library's own calls; they are nobody's affair
    return real_unmap(p, n);
}
static CUresult my_alloc(CUdeviceptr *p, size_t n) {
    if (!n || n == hook_expects_bytes) __atomic_add_fetch(&hook_allocs, 1, 5);
    return real_alloc(p, n);
}
static void *patch(const char *name, void *by, int far, unsigned char *room) {
    unsigned char *f = dlsym(RTLD_NEXT, name);
    Dl_info in;
    dladdr(f, &in);
    fprintf(stderr, "hook: %s in %s\n", name, strrchr(in.dli_fname, '/') + 1);
    int len;
    unsigned char jump[14] = {0xff, 0x25};
    if (!far) {
        unsigned char *pad = room + 64;
        memcpy(pad, jump, 6);
        memcpy(pad + 6, &by, 8);
        jump[0] = 0xe9;
        if (!put32(jump + 1, pad - (f + 5))) return NULL;
    } else
        memcpy(jump + 6, &by, 8);
    if (!move(f, room, far ? 14 : 5, &len)) return NULL;
    long page = sysconf(_SC_PAGESIZE);
    unsigned char *start = (unsigned char *)((uintptr_t)f & -page);
    if (mprotect(start, 2 * page, PROT_READ | PROT_WRITE | PROT_EXEC)) {
        perror("mprotect");
        return NULL;
    }
    memcpy(f, jump, far ? 14 : 5);
    mprotect(start, 2 * page, PROT_READ | PROT_EXEC);
    return room;
}
int hook_install(int far) {
    unsigned char *near = dlsym(RTLD_NEXT, "cuDriverGetVersion"), *room = MAP_FAILED;
    for (long k = 1; k < 500 && room == MAP_FAILED; k++)
        room = mmap((void *)(((uintptr_t)near & -4096l) - k * (1l << 21)), 4096,
                    PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                    0);
    if (room == MAP_FAILED) return 0;
    real_free = (CUresult (*)(CUdeviceptr))room;
    real_alloc = (CUresult (*)(CUdeviceptr *, size_t))(room + 512);
    real_unmap = (CUresult (*)(CUdeviceptr, size_t))(room + 1024);
    return patch("cuMemUnmap", (void *)my_unmap, far, room + 1024) &&
           patch("cuMemFree_v2", (void *)my_free, far, room) &&
           patch("cuMemAlloc_v2", (void *)my_alloc, far, room + 512);
}
#else
int main(int argc, char **argv) {
    double seconds = atof(argv[1]);
    int far = !strcmp(argv[2], "far");
    primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, 4096));
    CK(cuMemFree(p));
    void *lib = dlopen("libinline_hooks.so", RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        puts(dlerror());
        return 3;
    }
    int (*install)(int) = (int (*)(int))dlsym(lib, "hook_install");
    long *allocs = dlsym(lib, "hook_allocs"), *frees = dlsym(lib, "hook_frees");
    CUdeviceptr *expects = dlsym(lib, "hook_expects");
    *(size_t *)dlsym(lib, "hook_expects_bytes") = 4 * MIB;
    int ok = install(far);
    printf("installed %d\n", ok);
    fflush(stdout);
    EXPECT(ok, "the hooks could not be installed");
    long calls = 0, unheard_allocs = 0, unheard_frees = 0;
    double end = now() + seconds;
    while (now() < end) {
        long before = *allocs;
        CK(cuMemAlloc(&p, 4 * MIB));
        unheard_allocs += *allocs == before;
        CK(cuMemsetD8(p, 3, 4 * MIB));
        before = *frees;
        *expects = p;
        CK(cuMemFree(p));
        unheard_frees += *frees == before;
        calls++;
        nap(0.002);
    }
    EXPECT(calls && !unheard_allocs, "%ld of %ld allocations were not heard of", unheard_allocs, calls);
    EXPECT(calls && !unheard_frees, "%ld of %ld frees were not heard of", unheard_frees, calls);
    printf("%ld calls, %ld allocations and %ld frees heard of\n", calls, *allocs, *frees);
    return done();
}
#endif
