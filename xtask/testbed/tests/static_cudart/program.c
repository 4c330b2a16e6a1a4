/* A program with the CUDA runtime linked into it, as PyTorch has it: asks how many devices there are, and says what it
   was told. */
#include <stdio.h>

int cudaGetDeviceCount(int *count);
int cudaMalloc(void **address, size_t bytes);
const char *cudaGetErrorName(int error);

int main(void) {
    int count = -1;
    void *address = NULL;
    int error = cudaGetDeviceCount(&count);
    printf("cudaGetDeviceCount: %d %s, %d\n", error, cudaGetErrorName(error), count);
    error = cudaMalloc(&address, 1 << 20);
    printf("cudaMalloc: %d %s, %p\n", error, cudaGetErrorName(error), address);
    return 0;
}
