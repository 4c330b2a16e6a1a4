// Memory whose physical pages somebody else comes to know: by its tokens, or bound to an object. It stays where it is.
// kept nothing|tokens|endpoint|multicast: then says "ready", and goes on when it is told to.
#include "case.h"
#define BYTES (8 * MIB)
int main(int argc, char **argv) {
    CUdeviceptr p, q, result;
    unsigned long long tokens[2];
    char line[8];
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&q, BYTES));
    CK(cuMemAlloc(&result, 4096));
    fill(p, BYTES, 3);
    fill(q, BYTES, 4);
    if (!strcmp(argv[1], "tokens"))
        CK(cuPointerGetAttribute(tokens, CU_POINTER_ATTRIBUTE_P2P_TOKENS, p + 4096));
    else if (!strcmp(argv[1], "endpoint"))
        CK(cuLogicalEndpointBindAddr(0, 0, 0, (void *)(uintptr_t)p, BYTES, 0));
    else if (!strcmp(argv[1], "multicast")) {
        // Of this memory the driver binds none.
        CUresult e = cuMulticastBindAddr(0, 0, p, BYTES, 0), f = cuMulticastBindAddr_v2(0, 0, 0, p, BYTES, 0);
        EXPECT(e == 1 && f == 1, "cuMulticastBindAddr %d and %d", e, f);
    }
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 3;
    EXPECT(!wrong(p, BYTES, 3, result) && !wrong(q, BYTES, 4, result), "bytes were lost");
    CK(cuMemFree(p));
    CK(cuMemFree(q));
    return done();
}
