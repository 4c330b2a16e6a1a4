// A program that shuts itself in after it began: from then on the kernel refuses system calls of these numbers (EPERM), in all
// its threads. sandbox NUMBER...
#include "case.h"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#define BYTES (16 * MIB)
int main(int argc, char **argv) {
    CUdeviceptr p, result;
    struct sock_filter filter[64] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    int steps = 1;
    primary(0);
    CK(cuMemAlloc(&p, BYTES));
    CK(cuMemAlloc(&result, 4096));
    fill(p, BYTES, 3);
    for (int i = 1; i < argc; i++) {
        filter[steps++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(argv[i]), 0, 1);
        filter[steps++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    }
    filter[steps++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog all = {steps, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 3;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &all)) return 3;
    for (double end = now() + 2; now() < end; nap(0.001)) {
        fill(p, BYTES, 5);
        EXPECT(!wrong(p, BYTES, 5, result), "bytes were lost");
    }
    return done();
}
