// For programs that say themselves when everything they have is swapped out and in again.
#include "case.h"
#include <sys/socket.h>
static int swaps = -1;
// Begins the program anew, with the library's tool for forced swaps in this process's own hand. Bare, and without `wanted`,
// nothing is ordered.
static inline void order_swaps(int wanted, char **argv) {
    int pair[2];
    char number[16];
    const char *ours = getenv("CASE_SWAPS");
    if (!wanted) return;
    if (ours) {
        swaps = atoi(ours);
        return;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) _exit(3);
    snprintf(number, sizeof number, "%d", pair[1]);
    setenv("NVSHARE_DEBUG_SWAP_BY", number, 1);
    snprintf(number, sizeof number, "%d", pair[0]);
    setenv("CASE_SWAPS", number, 1);
    execv("/proc/self/exe", argv);
    _exit(3);
}
// `s`: everything out and in again; `o`: out, until somebody wants it. 1 where something was moved, 0 where nothing was, -1
// where nothing is ordered.
static inline int ordered(char what) {
    char answer = 0;
    if (swaps < 0) return -1;
    if (write(swaps, &what, 1) != 1 || read(swaps, &answer, 1) != 1) _exit(3);
    return answer == '+';
}
static inline int swapped(void) { return ordered('s'); }
