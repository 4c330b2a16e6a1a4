#!/usr/bin/env python3
"""A program that takes all that is said to be free, in one piece, and goes on for a time: each round it fills the piece with
another byte and looks at some of it. Beside another it is swapped out and must come back whole, although pinned host memory
and the other's context take some of the card. `brim.py pins` asks a real driver what pinned memory takes of a card.

    brim.py SECONDS [GIB]        (GIB: that much instead of all)
    brim.py pins

One JSON object a line; status 1 for a wrong byte."""

import ctypes as c
import json
import mmap
import sys
import time

from assumptions import cuda, must


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def room():
    free, total = c.c_size_t(), c.c_size_t()
    must(cuda.cuMemGetInfo_v2(c.byref(free), c.byref(total)))
    return free.value, total.value


def pins():
    libc = c.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = c.c_void_p, [c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_long]
    for name, advice in (("4 KiB pages", 15), ("huge pages", 14)):
        before, took, pieces = room()[0], [], []
        for piece in range(256):
            at = libc.mmap(None, 64 << 20, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
            libc.madvise(c.c_void_p(at), c.c_size_t(64 << 20), advice)
            c.memset(at, 1, 64 << 20)
            must(cuda.cuMemHostRegister_v2(c.c_void_p(at), c.c_size_t(64 << 20), 3))
            pieces.append(at)
            if piece + 1 in (1, 4, 16, 64, 128, 256):
                took.append([(piece + 1) * 64, (before - room()[0]) >> 10])
        for at in pieces:
            must(cuda.cuMemHostUnregister(c.c_void_p(at)))
            libc.munmap(c.c_void_p(at), c.c_size_t(64 << 20))
        say(f"host memory pinned in pieces of 64 MiB, {name}: [MiB pinned, KiB of the card]", seen=took, left=(before - room()[0]) >> 10)


def main():
    context = c.c_void_p()
    must(cuda.cuInit(0))
    must(cuda.cuDevicePrimaryCtxRetain(c.byref(context), 0))
    must(cuda.cuCtxSetCurrent(context))
    if sys.argv[1] == "pins":
        return pins()
    free, total = room()
    wanted = int(float(sys.argv[2]) * (1 << 30)) if len(sys.argv) > 2 else free & ~((2 << 20) - 1)
    piece, refused = c.c_uint64(), 0
    while (answer := cuda.cuMemAlloc_v2(c.byref(piece), c.c_size_t(wanted))) == 2 and refused < 20:
        wanted, refused = wanted * 9 // 10 & ~((2 << 20) - 1), refused + 1
    must(answer)
    say("taken", free=free >> 20, total=total >> 20, wanted=wanted >> 20, refused=refused)
    end, rounds, longest, some = time.monotonic() + float(sys.argv[1]), 0, 0.0, c.create_string_buffer(4096)
    while time.monotonic() < end:
        began, byte = time.monotonic(), rounds % 251 + 1
        must(cuda.cuMemsetD8_v2(piece, c.c_ubyte(byte), c.c_size_t(wanted)))
        must(cuda.cuCtxSynchronize())
        for at in range(0, wanted - 4096, max(wanted // 64, 4096)):
            must(cuda.cuMemcpyDtoH_v2(some, c.c_uint64(piece.value + at), c.c_size_t(4096)))
            if some.raw != bytes([byte]) * 4096:
                say("WRONG", at=at, round=rounds)
                return sys.exit(1)
        rounds, longest = rounds + 1, max(longest, time.monotonic() - began)
    must(cuda.cuMemFree_v2(piece))
    say("ended well", rounds=rounds, longest_s=round(longest, 2))


main()
