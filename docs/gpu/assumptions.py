#!/usr/bin/env python3
"""Asks a real driver what docs/driver-assumptions.md assumes of it. Needs Python and libcuda, a GPU, and a minute.

    python3 docs/gpu/assumptions.py                 the questions, one JSON object a line, then those of execution.py and memory.py
    python3 docs/gpu/assumptions.py names NAME...   what cuGetProcAddress_v2 finds for each name, with flags 0 and 2
"""

import ctypes as c
import json
import os
import subprocess
import sys
import threading
import time

cuda = c.CDLL("libcuda.so.1")
LEGACY, PER_THREAD = c.c_void_p(1), c.c_void_p(2)
RELAXED = 2
PTX = b"""
.version 7.0
.target sm_52
.address_size 64
.visible .entry spin(.param .u64 ns) {
  .reg .u64 %t0, %t1, %n, %d; .reg .pred %p;
  ld.param.u64 %n, [ns]; mov.u64 %t0, %globaltimer;
AGAIN: mov.u64 %t1, %globaltimer; sub.u64 %d, %t1, %t0; setp.lt.u64 %p, %d, %n; @%p bra AGAIN; ret;
}
.visible .entry poke(.param .u64 at) {
  .reg .u64 %a; ld.param.u64 %a, [at]; st.global.u64 [%a], %a; ret;
}
"""


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def must(rc):
    assert rc == 0, rc


class Dl_info(c.Structure):
    _fields_ = [("file", c.c_char_p), ("base", c.c_void_p), ("name", c.c_char_p), ("address", c.c_void_p)]


def names(wanted):
    dladdr = c.CDLL(None).dladdr
    look_up = cuda.cuGetProcAddress_v2
    for name in wanted:
        for flags in (0, 2):
            found, status = c.c_void_p(), c.c_int()
            rc = look_up(name.encode(), c.byref(found), 12090, c.c_uint64(flags), c.byref(status))
            info = Dl_info()
            if found.value:
                dladdr(found, c.byref(info))
            print(name, flags, rc, os.path.basename((info.file or b"-").decode()), (info.name or b"?").decode())


def context():
    must(cuda.cuInit(0))
    device, made = c.c_int(), c.c_void_p()
    must(cuda.cuDeviceGet(c.byref(device), 0))
    must(cuda.cuCtxCreate_v2(c.byref(made), 0, device))
    module, functions = c.c_void_p(), []
    must(cuda.cuModuleLoadData(c.byref(module), PTX))
    for name in (b"spin", b"poke"):
        function = c.c_void_p()
        must(cuda.cuModuleGetFunction(c.byref(function), module, name))
        functions.append(function)
    return made, functions


def launch(function, stream, value):
    argument = c.c_uint64(value)
    arguments = (c.c_void_p * 1)(c.cast(c.byref(argument), c.c_void_p))
    return cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, None)


def stream(flags):
    made = c.c_void_p()
    must(cuda.cuStreamCreate(c.byref(made), flags))
    return made


def recorded(where):
    event = c.c_void_p()
    must(cuda.cuEventCreate(c.byref(event), 2))
    return event, cuda.cuEventRecord(event, where)


def elsewhere(current, act):
    """Runs `act` in another thread with the context current."""
    answer = []

    def run():
        must(cuda.cuCtxSetCurrent(current))
        answer.append(act())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answer[0]


def exchange(mode):
    value = c.c_int(mode)
    must(cuda.cuThreadExchangeStreamCaptureMode(c.byref(value)))
    return value.value


def capture_status(where):
    status = c.c_int(-1)
    return cuda.cuStreamIsCapturing(where, c.byref(status)), status.value


def main():
    current, (spin, _) = context()
    version = c.c_int()
    cuda.cuDriverGetVersion(c.byref(version))
    say("driver", version=version.value)
    long = 300_000_000

    for what, where in (("another thread's default stream", PER_THREAD), ("a blocking stream", stream(0)),
                        ("a non-blocking stream", stream(1))):
        must(elsewhere(current, lambda where=where: launch(spin, where, long)))
        event, rc = recorded(LEGACY)
        at_once = cuda.cuEventQuery(event)
        must(cuda.cuCtxSynchronize())
        say("an event in the legacy stream waits for " + what, record=rc, at_once=at_once, after=cuda.cuEventQuery(event))

    for what, flags in (("blocking", 0), ("non-blocking", 1)):
        captured, other = stream(flags), stream(1)
        must(cuda.cuStreamBeginCapture_v2(captured, 0))
        facts = {"legacy": capture_status(LEGACY), "captured": capture_status(captured), "other": capture_status(other)}

        def relaxed():
            before = exchange(RELAXED)
            event, rc = recorded(other)
            return before, rc, cuda.cuEventQuery(event), cuda.cuEventDestroy_v2(event), cuda.cuStreamQuery(other)

        def memory():
            exchange(RELAXED)
            handle, at, where = c.c_uint64(), c.c_uint64(), (c.c_int * 2)(1, 0)
            prop = (c.c_byte * 128)()
            c.memmove(prop, (c.c_int * 4)(1, 0, 1, 0), 16)
            access = (c.c_int * 3)(1, 0, 3)
            size = c.c_size_t(2 << 20)
            rcs = [cuda.cuMemCreate(c.byref(handle), size, prop, c.c_uint64(0)),
                   cuda.cuMemAddressReserve(c.byref(at), size, c.c_size_t(0), c.c_uint64(0), c.c_uint64(0)),
                   cuda.cuMemMap(at, size, c.c_size_t(0), handle, c.c_uint64(0)),
                   cuda.cuMemSetAccess(at, size, access, c.c_size_t(1)), cuda.cuMemUnmap(at, size),
                   cuda.cuMemRelease(handle), cuda.cuMemAddressFree(at, size)]
            plain = c.c_uint64()
            return rcs + [cuda.cuMemAlloc_v2(c.byref(plain), size), cuda.cuMemFree_v2(plain)]

        facts["events in a relaxed thread"] = elsewhere(current, relaxed)
        facts["VMM calls, then cuMemAlloc and cuMemFree, in a relaxed thread"] = elsewhere(current, memory)
        facts["launch"] = launch(spin, captured, 1000)
        graph = c.c_void_p()
        facts["end"] = cuda.cuStreamEndCapture(captured, c.byref(graph))
        say(f"a capture in a {what} stream, in global mode", **facts)

    captured = stream(1)
    must(cuda.cuStreamBeginCapture_v2(captured, 0))
    strict = elsewhere(current, lambda: (lambda event, rc: (rc, cuda.cuEventQuery(event)))(*recorded(stream(1))))
    graph = c.c_void_p()
    say("the same events in a thread that is not relaxed", events=strict,
        end=cuda.cuStreamEndCapture(captured, c.byref(graph)))

    got = c.c_void_p()
    say("cuStreamGetCtx of the default streams", current=current.value,
        legacy=(cuda.cuStreamGetCtx(LEGACY, c.byref(got)), got.value),
        per_thread=(cuda.cuStreamGetCtx(PER_THREAD, c.byref(got)), got.value))

    going = stream(1)
    must(launch(spin, going, long))
    event, _ = recorded(going)
    destroyed, at_once = cuda.cuStreamDestroy_v2(going), cuda.cuEventQuery(event)
    time.sleep(0.6)
    say("an event of a destroyed stream", destroy=destroyed, at_once=at_once, later=cuda.cuEventQuery(event))

    alignment, pitches = c.c_int(), {}
    must(cuda.cuDeviceGetAttribute(c.byref(alignment), 14, 0))
    for width in (1, 511, 513, 5000):
        at, pitch = c.c_uint64(), c.c_size_t()
        must(cuda.cuMemAllocPitch_v2(c.byref(at), c.byref(pitch), c.c_size_t(width), c.c_size_t(3), 4))
        pitches[width] = pitch.value
    say("pitch", texture_alignment=alignment.value, pitches=pitches)

    where, rounds = stream(1), 2000
    start = time.perf_counter()
    for _ in range(rounds):
        event, _ = recorded(where)
        cuda.cuEventQuery(event)
        cuda.cuEventDestroy_v2(event)
    say("create, record, query and destroy an event, us (with Python's cost)", us=(time.perf_counter() - start) / rounds * 1e6)


def sticky():
    current, (_, poke) = context()
    where = stream(1)
    event, _ = recorded(where)
    must(launch(poke, where, 8))
    synchronized = cuda.cuStreamSynchronize(where)
    say("after an illegal address", synchronize=synchronized, query=cuda.cuEventQuery(event), status=capture_status(where),
        legacy=capture_status(LEGACY), push=cuda.cuCtxPushCurrent_v2(current), create=cuda.cuStreamCreate(c.byref(c.c_void_p()), 1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["names"]:
        names(sys.argv[2:])
    elif sys.argv[1:2] == ["sticky"]:
        sticky()
    else:
        main()
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "sticky"], check=False)
        for more in ("execution.py", "memory.py"):
            subprocess.run([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), more)], check=False)
