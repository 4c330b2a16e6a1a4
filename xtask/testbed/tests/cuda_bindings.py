"""A client that none of us wrote the library for: unmodified cuda-bindings from PyPI.

Allocates, copies both ways, and finds its bytes. Speaks with the test by lines: prints `ready` when its memory holds
what it should, waits for a line, checks, prints `ok`, and so on until its input ends.
"""

import random
import sys

from cuda.bindings import driver as cuda

PIECES = [24 << 20, 7 << 20, 1 << 20, 12345, 512, 1]


def check(answer):
    error, *values = answer
    if error != cuda.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the driver answered {error}")
    return values[0] if len(values) == 1 else values


def main():
    check(cuda.cuInit(0))
    device = check(cuda.cuDeviceGet(0))
    context = check(cuda.cuDevicePrimaryCtxRetain(device))
    check(cuda.cuCtxSetCurrent(context))
    stream = check(cuda.cuStreamCreate(0))

    contents = random.Random(7)
    pieces = []
    for size in PIECES:
        address = check(cuda.cuMemAlloc(size))
        data = contents.randbytes(size)
        check(cuda.cuMemcpyHtoD(address, data, size))
        pieces.append((address, data))
    copy = check(cuda.cuMemAlloc(PIECES[0]))
    check(cuda.cuMemcpyDtoDAsync(copy, pieces[0][0], PIECES[0], stream))
    check(cuda.cuStreamSynchronize(stream))
    pieces.append((copy, pieces[0][1]))
    print("ready", flush=True)

    for _ in sys.stdin:
        for number, (address, data) in enumerate(pieces):
            found = bytearray(len(data))
            check(cuda.cuMemcpyDtoH(found, address, len(data)))
            if found != data:
                print(f"piece {number} of {len(data)} bytes is not what it was", flush=True)
                return 1
        # Other contents for the next time.
        address, data = pieces[1]
        data = bytes(len(data) // 2) + data[len(data) // 2:]
        check(cuda.cuMemsetD8Async(address, 0, len(data) // 2, stream))
        check(cuda.cuStreamSynchronize(stream))
        pieces[1] = (address, data)
        print("ok", flush=True)

    for address, _ in pieces:
        check(cuda.cuMemFree(address))
    check(cuda.cuStreamDestroy(stream))
    check(cuda.cuDevicePrimaryCtxRelease(device))
    return 0


sys.exit(main())
