#!/usr/bin/env python3
"""Asks a real driver two things about accounts (docs/driver-assumptions.md, "The shim's engine"). Needs Python, libcuda, NVML
and a GPU; a few seconds. One JSON object a line."""

import ctypes as c
import json
import threading
import time

from assumptions import PTX, cuda, must


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


nvml = c.CDLL("libnvidia-ml.so.1")
must(nvml.nvmlInit_v2())
card = c.c_void_p()
must(nvml.nvmlDeviceGetHandleByIndex_v2(0, c.byref(card)))


def used():
    memory = (c.c_ulonglong * 3)()
    must(nvml.nvmlDeviceGetMemoryInfo(card, memory))
    return memory[2]


must(cuda.cuInit(0))
context, grew = c.c_void_p(), []
for _ in range(20):
    before = used()
    must(cuda.cuDevicePrimaryCtxRetain(c.byref(context), 0))
    at_once = used()
    time.sleep(0.3)
    grew.append(((at_once - before) >> 20, (used() - at_once) >> 20))
    must(cuda.cuDevicePrimaryCtxRelease_v2(0))
    time.sleep(0.2)
say("NVML's figure right after cuDevicePrimaryCtxRetain, and what came within 0.3 s after, MiB", seen=grew)

must(cuda.cuDevicePrimaryCtxRetain(c.byref(context), 0))
must(cuda.cuCtxSetCurrent(context))
module, spin, stream, other = c.c_void_p(), c.c_void_p(), c.c_void_p(), c.c_void_p()
must(cuda.cuModuleLoadData(c.byref(module), PTX))
must(cuda.cuModuleGetFunction(c.byref(spin), module, b"spin"))
must(cuda.cuStreamCreate(c.byref(stream), 1))
must(cuda.cuStreamCreate(c.byref(other), 1))
pool, piece, keep = c.c_void_p(), c.c_uint64(), c.c_uint64(1 << 40)
must(cuda.cuDeviceGetMemPool(c.byref(pool), 0))
must(cuda.cuMemPoolSetAttribute(pool, 4, c.byref(keep)))
must(cuda.cuMemAllocAsync(c.byref(piece), c.c_size_t(64 << 20), other))
must(cuda.cuStreamSynchronize(other))


def launch(nanoseconds):
    value = c.c_uint64(nanoseconds)
    arguments = (c.c_void_p * 1)(c.addressof(value))
    must(cuda.cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, stream, arguments, None))


def fill():
    must(cuda.cuCtxSetCurrent(context))
    launch(2_000_000_000)
    for _ in range(1030):
        launch(1000)


filler = threading.Thread(target=fill)
filler.start()
time.sleep(0.5)
asked = {}


def ask():
    # No context is current in this thread.
    for name, number in (("reserved", 5), ("used", 7)):
        value, began = c.c_uint64(), time.monotonic()
        rc = cuda.cuMemPoolGetAttribute(pool, number, c.byref(value))
        asked["pool " + name] = [rc, value.value >> 20, round((time.monotonic() - began) * 1e3, 2)]
    value, began = c.c_uint64(), time.monotonic()
    rc = cuda.cuDeviceGetGraphMemAttribute(0, 2, c.byref(value))
    asked["graphs"] = [rc, value.value >> 20, round((time.monotonic() - began) * 1e3, 2)]


asker = threading.Thread(target=ask)
asker.start()
asker.join(10)
say("asked without a context, beside a kernel of 2 s and a thread stuck in a full stream: answer, MiB, ms", stuck=filler.is_alive(), seen=asked)
filler.join()
