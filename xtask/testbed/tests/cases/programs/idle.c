// A client that has a context and 1 MiB and does nothing; argument: seconds.
#include "case.h"
int main(int argc, char **argv) {
    primary(0);
    CUdeviceptr p;
    CK(cuMemAlloc(&p, MIB));
    puts("ready");
    fflush(stdout);
    nap(atof(argv[1]));
    return 0;
}
