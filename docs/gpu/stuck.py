#!/usr/bin/env python3
"""Asks a real driver which calls wait beside a thread that is stuck in a full stream, and what is answered after an illegal
address (docs/driver-assumptions.md). Needs Python, libcuda and a GPU; half a minute. One JSON object a line."""

import ctypes as c
import json
import mmap
import subprocess
import sys
import threading
import time

from assumptions import PTX, cuda, must

libc = c.CDLL(None, use_errno=True)
libc.mmap.restype, libc.mmap.argtypes = c.c_void_p, [c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_long]
MIB = 1 << 20
HELD = 3_000_000_000  # nanoseconds


class Location(c.Structure):
    _fields_ = [("type", c.c_int), ("id", c.c_int)]


class Properties(c.Structure):
    _fields_ = [("type", c.c_int), ("handles", c.c_int), ("location", Location), ("metadata", c.c_void_p), ("flags", c.c_uint8 * 8)]


class Access(c.Structure):
    _fields_ = [("location", Location), ("flags", c.c_int)]


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def context():
    made = c.c_void_p()
    must(cuda.cuInit(0))
    must(cuda.cuDevicePrimaryCtxRetain(c.byref(made), 0))
    must(cuda.cuCtxSetCurrent(made))
    return made


def kernel(name):
    module, function = c.c_void_p(), c.c_void_p()
    must(cuda.cuModuleLoadData(c.byref(module), PTX))
    must(cuda.cuModuleGetFunction(c.byref(function), module, name))
    return function


def launch(function, stream, value):
    value = c.c_uint64(value)
    arguments = (c.c_void_p * 1)(c.addressof(value))
    return cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, None)


def pages(bytes):
    at = libc.mmap(None, bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    c.memset(at, 1, bytes)
    return at


def mapped():
    properties, handle, at = Properties(1, 0, Location(1, 0)), c.c_uint64(), c.c_uint64()
    must(cuda.cuMemAddressReserve(c.byref(at), c.c_size_t(2 * MIB), c.c_size_t(0), c.c_uint64(0), c.c_uint64(0)))
    codes = [cuda.cuMemCreate(c.byref(handle), c.c_size_t(2 * MIB), c.byref(properties), c.c_uint64(0))]
    codes.append(cuda.cuMemMap(at, c.c_size_t(2 * MIB), c.c_size_t(0), handle, c.c_uint64(0)))
    codes.append(cuda.cuMemSetAccess(at, c.c_size_t(2 * MIB), c.byref(Access(Location(1, 0), 3)), c.c_size_t(1)))
    return codes, at, handle


def stuck():
    current = context()
    spin, stream = kernel(b"spin"), c.c_void_p()
    must(cuda.cuStreamCreate(c.byref(stream), 1))
    pinned, loose = pages(64 * MIB), pages(64 * MIB)
    must(cuda.cuMemHostRegister_v2(c.c_void_p(pinned), c.c_size_t(64 * MIB), 3))

    def fill():
        must(cuda.cuCtxSetCurrent(current))
        must(launch(spin, stream, HELD))
        for _ in range(1030):
            must(launch(spin, stream, 1000))

    answers = {}

    def ask(name, call, with_context=True):
        def thread():
            if with_context:
                must(cuda.cuCtxSetCurrent(current))
            began = time.monotonic()
            answer = call()
            answers[name] = [answer, round((time.monotonic() - began) * 1e3, 1)]
        asker = threading.Thread(target=thread)
        asker.start()
        return asker

    filler = threading.Thread(target=fill)
    filler.start()
    time.sleep(0.7)
    out, number, words = c.c_void_p(), c.c_int(), (c.c_size_t(), c.c_size_t())
    # Those that were seen not to wait come first, so that none stands behind another.
    for name, call, with_context in (
        ("cuDeviceGetAttribute", lambda: cuda.cuDeviceGetAttribute(c.byref(number), 75, 0), False),
        ("cuMemGetInfo", lambda: cuda.cuMemGetInfo_v2(c.byref(words[0]), c.byref(words[1])), True),
        ("create, map, set access without a context", lambda: mapped()[0], False),
        ("cuMemHostRegister of 64 MiB", lambda: cuda.cuMemHostRegister_v2(c.c_void_p(loose), c.c_size_t(64 * MIB), 3), True),
        ("cuMemHostAlloc of 64 KiB", lambda: cuda.cuMemHostAlloc(c.byref(c.c_void_p()), c.c_size_t(65536), 3), True),
        ("cuStreamCreate", lambda: cuda.cuStreamCreate(c.byref(out), 1), True),
        ("cuMemHostUnregister of 64 MiB", lambda: cuda.cuMemHostUnregister(c.c_void_p(pinned)), True),
    ):
        asker = ask(name, call, with_context)
        asker.join(0.2)
    filler.join()
    time.sleep(0.3)
    say("beside a thread stuck in a full stream for 2.3 s more: answer, ms", seen=answers)


def illegal():
    current = context()
    _, at, handle = mapped()
    poke, second = kernel(b"poke"), c.c_void_p()
    must(launch(poke, None, 0x10))
    answers = {"synchronize": cuda.cuCtxSynchronize()}
    device, words = c.c_int(), (c.c_size_t(), c.c_size_t())
    answers["cuCtxGetDevice"] = cuda.cuCtxGetDevice(c.byref(device))
    answers["cuMemGetInfo"] = cuda.cuMemGetInfo_v2(c.byref(words[0]), c.byref(words[1]))
    answers["cuMemUnmap"] = cuda.cuMemUnmap(at, c.c_size_t(2 * MIB))
    answers["cuMemRelease"] = cuda.cuMemRelease(handle)
    answers["cuCtxCreate"] = cuda.cuCtxCreate_v2(c.byref(second), 0, 0)
    answers["reset"] = cuda.cuDevicePrimaryCtxReset_v2(0)
    if second.value:
        answers["cuCtxDestroy"] = cuda.cuCtxDestroy_v2(second)
    again, pointer = c.c_void_p(), c.c_uint64()
    answers["retain after"] = cuda.cuDevicePrimaryCtxRetain(c.byref(again), 0)
    answers["set current after"] = cuda.cuCtxSetCurrent(again)
    answers["cuMemAlloc after"] = cuda.cuMemAlloc_v2(c.byref(pointer), c.c_size_t(MIB))
    answers["synchronize after"] = cuda.cuCtxSynchronize()
    say("after an illegal address", seen=answers)


if len(sys.argv) > 1:
    illegal()
else:
    stuck()
    sys.exit(subprocess.run([sys.executable, __file__, "illegal"]).returncode)
