// Calls that may take a little memory for the driver itself, each of which finds none at some time although the agent could
// make room: NVSHARE_SIM_FAULTS says when. None fails, but one into a capture, which is not made twice.
// calls_out_of_memory lazy|graph|stream|link|capture
#include "case.h"
static CUgraphExec ready(CUstream s, CUdeviceptr p) {
    CUgraph g;
    CUgraphExec x;
    CK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
    CK(cuMemsetD32Async(p, 7, 1024, s));
    CK(cuStreamEndCapture(s, &g));
    CK(cuGraphInstantiateWithFlags(&x, g, 0));
    return x;
}
int main(int argc, char **argv) {
    primary(0);
    CUdeviceptr p;
    CUstream s;
    CK(cuMemAlloc(&p, 4 * MIB));
    CK(cuMemsetD32(p, 0, 1024));
    CK(cuCtxSynchronize());
    CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
    if (!strcmp(argv[1], "lazy")) {
        CUlibrary l;
        CUmodule m;
        CUkernel k;
        CUfunction f;
        CK(cuLibraryLoadData(&l, PTX, NULL, NULL, 0, NULL, NULL, 0));
        CK(cuLibraryGetModule(&m, l));
        CK(cuLibraryGetKernel(&k, l, "nvshare_spin"));
        CK(cuKernelGetFunction(&f, k));
        CK(cuFuncLoad(f));
        LAUNCH1(f, s, 1000);
    } else if (!strcmp(argv[1], "graph")) {
        CUgraphExec x = ready(s, p);
        CK(cuGraphUpload(x, s));
        CK(cuGraphLaunch(x, s));
    } else if (!strcmp(argv[1], "stream")) {
        for (int i = 0; i < 20; i++) {
            CK(cuStreamCreate(&s, CU_STREAM_NON_BLOCKING));
            CK(cuStreamCreateWithPriority(&s, CU_STREAM_NON_BLOCKING, 0));
        }
    } else if (!strcmp(argv[1], "link")) {
        for (int i = 0; i < 10; i++) {
            CUlinkState l;
            void *image;
            size_t bytes;
            CK(cuLinkCreate(0, NULL, NULL, &l));
            CK(cuLinkAddData(l, 1, (void *)PTX, strlen(PTX) + 1, "case", 0, NULL, NULL));
            CK(cuLinkComplete(l, &image, &bytes));
            CK(cuLinkDestroy(l));
        }
    } else {
        // The third launch is the first into a capture, the second graph launch as well. (The library makes no such launches.)
        uint64_t time = 1000;
        void *of[] = {&time};
        CUfunction f = kernel("nvshare_spin");
        CUgraphExec x = ready(s, p);
        CUgraph g;
        for (int i = 0; i < 2; i++) CK(cuLaunchCooperativeKernel(f, 1, 1, 1, 1, 1, 1, 0, s, of));
        CK(cuGraphLaunch(x, s));
        CK(cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED));
        CUresult e = cuLaunchCooperativeKernel(f, 1, 1, 1, 1, 1, 1, 0, s, of);
        EXPECT(e == 2, "a launch into a capture: %d", e);
        e = cuGraphLaunch(x, s);
        EXPECT(e == 2, "a graph into a capture: %d", e);
        e = cuMemAllocAsync(&p, 4096, s);
        EXPECT(e == 2, "an allocation into a capture: %d", e);
        CK(cuMemsetD32Async(p, 7, 1024, s));
        CK(cuStreamEndCapture(s, &g));
        size_t nodes = 0;
        CK(cuGraphGetNodes(g, NULL, &nodes));
        EXPECT(nodes == 1, "%zu nodes", nodes);
        CK(cuGraphInstantiateWithFlags(&x, g, 0));
        CK(cuGraphLaunch(x, s));
    }
    CK(cuStreamSynchronize(s));
    return done();
}
