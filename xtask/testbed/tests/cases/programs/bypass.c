// Launches through a second libcuda, of a name space of its own, which the library does not see: `bypass BEFORE AFTER`. After
// BEFORE launches as usual it waits for a line; after AFTER others for another, and then looks whether its memory is right.
// (The second library is not initialised and says so; a launch it is all the same.)
#include "case.h"
#include <elf.h>
#include <link.h>
typedef CUresult (*Launch)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                           void **, void **);
static void say(const char *what) {
    char line[64];
    puts(what);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        _exit(3);
}
// A function of a library, by the library's own table: the look-ups of the loader are the library's under test.
static void *look_up(void *library, const char *name) {
    struct link_map *map;
    if (!library || dlinfo(library, RTLD_DI_LINKMAP, &map))
        return 0;
    const ElfW(Sym) *symbols = 0;
    const char *names = 0;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_SYMTAB)
            symbols = (const void *)d->d_un.d_ptr;
        if (d->d_tag == DT_STRTAB)
            names = (const void *)d->d_un.d_ptr;
    }
    // The names lie behind the symbols.
    for (const ElfW(Sym) *s = symbols; s && (const char *)(s + 1) <= names; s++)
        if (s->st_value && !strcmp(names + s->st_name, name))
            return (char *)map->l_addr + s->st_value;
    return 0;
}
int main(int argc, char **argv) {
    if (argc != 3)
        return 64;
    primary(0);
    CUdeviceptr p, result;
    CK(cuMemAlloc(&p, 16 * MIB));
    CK(cuMemAlloc(&result, MIB));
    fill(p, 16 * MIB, 7);
    CUfunction spin = kernel("nvshare_spin");
    for (int i = 0; i < atoi(argv[1]); i++)
        LAUNCH1(spin, 0, 0);
    CK(cuCtxSynchronize());
    say("ready");
    void *other = dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW);
    EXPECT(other, "no second library: %s", dlerror());
    Launch launch = (Launch)look_up(other, "cuLaunchKernel");
    EXPECT(launch, "no launch past the library");
    for (int i = 0; launch && i < atoi(argv[2]); i++)
        launch(spin, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
    say("bypassed");
    uint64_t n = wrong(p, 16 * MIB, 7, result);
    EXPECT(n == 0, "%llu wrong words", (unsigned long long)n);
    return done();
}
