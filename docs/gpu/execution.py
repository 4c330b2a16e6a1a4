#!/usr/bin/env python3
"""Asks a driver what docs/driver-assumptions.md still guesses about streams, captures, copies, contexts and errors, one JSON
object a line. Needs Python and libcuda, no more than a minute; nothing outside of its own processes is changed.

    python3 docs/gpu/execution.py                  every question, each in a process of its own
    python3 docs/gpu/execution.py NAME...          these
    python3 docs/gpu/execution.py text FILE        the question about the driver's code, of a library that need not be the machine's
    python3 docs/gpu/execution.py uvm URL          moves managed memory beside an agent whose /metrics is at URL (not asked by default)

On the simulator too: `trap` and the like are nothing that it can run.
"""
import ctypes as c
import json
import re
import subprocess
import sys
import threading
import time

cuda = c.CDLL("libcuda.so.1") if sys.argv[1:2] != ["text"] else None
libc = c.CDLL(None)
libc.malloc.restype = c.c_void_p
V, U, S = c.c_void_p, c.c_uint64, c.c_size_t
LEGACY = V(1)
MIB = 1 << 20
HEAD = ".version 7.0\n.target sm_52\n.address_size 64\n"
PTX = HEAD + """
.visible .entry nvshare_spin(.param .u64 ns) {
  .reg .u64 %t0, %t1, %n, %d; .reg .pred %p;
  ld.param.u64 %n, [ns]; mov.u64 %t0, %globaltimer;
AGAIN: mov.u64 %t1, %globaltimer; sub.u64 %d, %t1, %t0; setp.lt.u64 %p, %d, %n; @%p bra AGAIN; ret;
}
.visible .entry nvshare_fill(.param .u64 at, .param .u64 words, .param .u64 seed) {
  .reg .u64 %a, %v; ld.param.u64 %a, [at]; ld.param.u64 %v, [seed]; st.u64 [%a], %v; ret;
}
.visible .entry nvshare_wait_flag(.param .u64 flag) {
  .reg .u64 %f; .reg .u32 %v; .reg .pred %p; ld.param.u64 %f, [flag];
AGAIN: ld.volatile.u32 %v, [%f]; setp.eq.u32 %p, %v, 0; @%p bra AGAIN; ret;
}
"""
# What no program does on purpose, each a module of its own: one that is not understood spoils no other.
WRONG = {
    "illegal address": "{ .reg .u64 %a; mov.u64 %a, 8; st.global.u64 [%a], %a; ret; }",
    "misaligned": "{ .reg .u64 %a; ld.param.u64 %a, [at]; add.u64 %a, %a, 1; st.global.u64 [%a], %a; ret; }",
    "trap": "{ trap; ret; }",
    "outside of shared memory": "{ .reg .u32 %a; mov.u32 %a, 0x7ffff0; st.shared.u32 [%a], %a; ret; }",
    "jump to nowhere": "{ .reg .u64 %a; mov.u64 %a, 8; P: .callprototype _ (); call %a, (), P; ret; }",
    "assert": "{ .reg .u64 %a; .reg .u32 %l; mov.u64 %a, text; cvta.global.u64 %a, %a; mov.u32 %l, 1;"
              " .param .b64 p0; .param .b64 p1; .param .b32 p2; .param .b64 p3; .param .b64 p4;"
              " st.param.b64 [p0], %a; st.param.b64 [p1], %a; st.param.b32 [p2], %l; st.param.b64 [p3], %a;"
              " st.param.b64 [p4], 1; call.uni __assertfail, (p0, p1, p2, p3, p4); ret; }",
}
ASSERT = (".extern .func __assertfail (.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);\n"
          ".global .align 1 .b8 text[4] = {97, 0, 0, 0};\n")


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def call(name, *values):
    return getattr(cuda, "cu" + name)(*values)


def must(rc):
    assert rc == 0, rc


def out(kind, name, *values):
    got = kind()
    return call(name, c.byref(got), *values), got


def good(kind, name, *values):
    rc, got = out(kind, name, *values)
    must(rc)
    return got


def timed(act):
    start = time.perf_counter()
    rc = act()
    return rc, round((time.perf_counter() - start) * 1e3, 2)


def start():
    """The primary context, and the kernels, loaded and launched once."""
    must(call("Init", 0))
    context = good(V, "DevicePrimaryCtxRetain", 0)
    must(call("CtxSetCurrent", context))
    return context, kernels()


def kernels():
    module = good(V, "ModuleLoadData", PTX.encode())
    found = {name: good(V, "ModuleGetFunction", module, b"nvshare_" + name.encode()) for name in ("spin", "fill", "wait_flag")}
    must(launch(found["spin"], None, 1000))
    must(call("CtxSynchronize"))
    return found


def launch(function, stream, *values):
    holders = [U(value) for value in (*values, 0, 0, 0)]
    arguments = (V * len(holders))(*[c.cast(c.byref(holder), V) for holder in holders])
    return call("LaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, None)


def stream(flags=1):
    return good(V, "StreamCreate", flags)


def event():
    return good(V, "EventCreate", 2)


def memory(size=MIB):
    return good(U, "MemAlloc_v2", S(size))


def elsewhere(context, act):
    """In another thread, with the context current; "hangs" after 5 s."""
    answer = ["hangs"]

    def run():
        must(call("CtxSetCurrent", context))
        answer[0] = act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    return answer[0]


def capturing(where):
    status = c.c_int(-1)
    return call("StreamIsCapturing", where, c.byref(status)), status.value


def end(where):
    return call("StreamEndCapture", where, c.byref(V()))


def capture_elsewhere():
    """Which calls another thread's capture in global mode forbids, and which of them spoil it."""
    context, found = start()
    idle, ready, plain, host = stream(), event(), memory(), good(V, "MemHostAlloc", S(4096), 0)
    spare = [memory(), memory()]
    must(call("EventRecord", ready, idle))
    must(call("CtxSynchronize"))
    word = c.create_string_buffer(8)
    calls = {
        "cuStreamSynchronize": lambda: call("StreamSynchronize", idle), "cuStreamQuery": lambda: call("StreamQuery", idle),
        "cuEventSynchronize": lambda: call("EventSynchronize", ready), "cuEventQuery": lambda: call("EventQuery", ready),
        "cuEventRecord": lambda: call("EventRecord", ready, idle), "cuEventCreate": lambda: out(V, "EventCreate", 2)[0],
        "cuEventDestroy": lambda: call("EventDestroy_v2", event()),
        "cuStreamCreate": lambda: out(V, "StreamCreate", 1)[0], "cuStreamDestroy": lambda: call("StreamDestroy_v2", stream()),
        "cuModuleLoadData": lambda: out(V, "ModuleLoadData", PTX.encode())[0],
        "cuMemAlloc": lambda: out(U, "MemAlloc_v2", S(4096))[0], "cuMemFree": lambda: call("MemFree_v2", spare.pop()),
        "cuMemHostAlloc": lambda: out(V, "MemHostAlloc", S(4096), 0)[0], "cuMemAllocAsync": lambda: out(U, "MemAllocAsync", S(4096), idle)[0],
        "cuMemcpyHtoD": lambda: call("MemcpyHtoD_v2", plain, word, S(8)), "cuMemcpyHtoDAsync pinned": lambda: call("MemcpyHtoDAsync_v2", plain, host, S(8), idle),
        "cuMemcpyHtoDAsync pageable": lambda: call("MemcpyHtoDAsync_v2", plain, word, S(8), idle),
        "cuLaunchKernel": lambda: launch(found["spin"], idle, 1000), "cuMemGetInfo": lambda: call("MemGetInfo_v2", c.byref(S()), c.byref(S())),
        "cuCtxSynchronize": lambda: call("CtxSynchronize"), "cuMemsetD8": lambda: call("MemsetD8_v2", plain, c.c_ubyte(0), S(8)),
        "cuCtxSetLimit": lambda: call("CtxSetLimit", 0, S(2048)),
    }
    for mode, name in ((0, "global"), (1, "thread-local")):
        seen = {}
        for what, act in calls.items():
            where = stream()
            must(call("StreamBeginCapture_v2", where, mode))
            must(launch(found["spin"], where, 1000))
            rc = elsewhere(context, act)
            seen[what] = [rc, capturing(where)[1], end(where)]
        say(f"beside a capture in {name} mode in another thread: answer, state, end of the capture", seen=seen)


def capture_spoilt():
    """What spoils a capture, from its own thread: the answer, the state afterwards (2: spoilt), the end."""
    context, found = start()
    outside, plain = event(), memory()
    must(call("EventRecord", outside, stream()))
    acts = {
        "nothing": lambda s, e: 0, "cuStreamSynchronize of it": lambda s, e: call("StreamSynchronize", s),
        "cuStreamQuery of it": lambda s, e: call("StreamQuery", s), "cuEventSynchronize of its event": lambda s, e: call("EventSynchronize", e),
        "cuEventQuery of its event": lambda s, e: call("EventQuery", e), "wait for an event from outside": lambda s, e: call("StreamWaitEvent", s, outside, 0),
        "launch in the legacy stream": lambda s, e: launch(found["spin"], LEGACY, 1000),
        "cuStreamQuery of the legacy stream": lambda s, e: call("StreamQuery", LEGACY),
        "cuStreamGetCtx of it": lambda s, e: call("StreamGetCtx", s, c.byref(V())), "cuStreamDestroy of it": lambda s, e: call("StreamDestroy_v2", s),
        "cuMemcpyHtoD": lambda s, e: call("MemcpyHtoD_v2", plain, c.create_string_buffer(8), S(8)),
        "a second beginning": lambda s, e: call("StreamBeginCapture_v2", s, 0),
    }
    for flags, kind in ((1, "non-blocking"), (0, "blocking")):
        seen = {}
        for what, act in acts.items():
            where, inside = stream(flags), event()
            must(call("StreamBeginCapture_v2", where, 0))
            must(launch(found["spin"], where, 1000))
            must(call("EventRecord", inside, where))
            rc = act(where, inside)
            gone = what.startswith("cuStreamDestroy") and rc == 0
            seen[what] = [rc] if gone else [rc, capturing(where)[1], end(where)]
            call("CtxSynchronize")
        say(f"a capture in a {kind} stream: answer, state, end", seen=seen)
    say("ends and beginnings", end_of_none=end(stream()))
    one, other, inside = stream(), stream(), event()
    must(call("StreamBeginCapture_v2", one, 0))
    must(call("EventRecord", inside, one))
    must(call("StreamWaitEvent", other, inside, 0))
    say("a stream that joined by an event", status=capturing(other), begin=call("StreamBeginCapture_v2", other, 0), end_there=end(other),
        status_then=capturing(one), end=end(one))


def pageable():
    """Copies from and to pageable memory behind a kernel of 300 ms: how long the call takes, and which bytes arrive when the source
    is changed as soon as it returns."""
    _, found = start()
    where, plain = stream(), memory(8 * MIB)
    for size in (8, 4 << 10, 64 << 10, (64 << 10) + 8, 256 << 10, 4 * MIB):
        source = c.create_string_buffer(b"\x11" * size, size)
        must(launch(found["spin"], where, 300_000_000))
        rc, took = timed(lambda: call("MemcpyHtoDAsync_v2", plain, source, S(size), where))
        c.memset(source, 0x22, size)
        must(call("StreamSynchronize", where))
        back = c.create_string_buffer(size)
        must(call("MemcpyDtoH_v2", back, plain, S(size)))
        arrived = {"old": back.raw.count(b"\x11"), "new": back.raw.count(b"\x22")}
        must(launch(found["spin"], where, 300_000_000))
        out_rc, out_took = timed(lambda: call("MemcpyDtoHAsync_v2", back, plain, S(size), where))
        must(call("StreamSynchronize", where))
        say("pageable copies", bytes=size, to_device=(rc, took), arrived=arrived, from_device=(out_rc, out_took))


def host_waits():
    """Which calls in the null stream wait for a kernel of 300 ms there."""
    context, found = start()
    a, b = memory(4 * MIB), memory(4 * MIB)
    word, pinned = c.create_string_buffer(4096), good(V, "MemHostAlloc", S(4 * MIB), 0)
    acts = {
        "cuMemcpyDtoD": lambda: call("MemcpyDtoD_v2", a, b, S(4 * MIB)), "cuMemcpyPeer": lambda: call("MemcpyPeer", a, context, b, context, S(MIB)),
        "cuMemcpy device to device": lambda: call("Memcpy", a, b, S(MIB)), "cuMemsetD8": lambda: call("MemsetD8_v2", a, c.c_ubyte(0), S(MIB)),
        "cuMemsetD32": lambda: call("MemsetD32_v2", a, 0, S(1024)), "cuMemsetD2D8": lambda: call("MemsetD2D8_v2", a, S(512), c.c_ubyte(0), S(100), S(4)),
        "cuMemcpyHtoD 4 KiB": lambda: call("MemcpyHtoD_v2", a, word, S(4096)), "cuMemcpyHtoD pinned 4 MiB": lambda: call("MemcpyHtoD_v2", a, pinned, S(4 * MIB)),
        "cuMemcpyDtoH 4 KiB": lambda: call("MemcpyDtoH_v2", word, a, S(4096)),
    }
    seen = {}
    for what, act in acts.items():
        must(launch(found["spin"], None, 300_000_000))
        seen[what] = timed(act)
        must(call("CtxSynchronize"))
    say("the host waits (answer, ms) behind 300 ms", seen=seen)


def contexts():
    """The end of a context with work in it; whom an illegal address concerns."""
    must(call("Init", 0))
    one = good(V, "CtxCreate_v2", 0, 0)
    found = kernels()
    must(launch(found["spin"], stream(), 3_000_000_000))
    say("cuCtxDestroy with a kernel of 3 s in it", answer=timed(lambda: call("CtxDestroy_v2", one)))
    two = good(V, "CtxCreate_v2", 0, 0)
    found, kept = kernels(), memory()
    must(call("MemsetD8_v2", kept, c.c_ubyte(7), S(8)))
    three = good(V, "CtxCreate_v2", 0, 0)
    launch(kernels()["fill"], None, 8, 1, 1)
    facts = {"there": call("CtxSynchronize")}
    call("CtxSetCurrent", two)
    word = c.create_string_buffer(8)
    facts["in another context: synchronize, launch, copy, value"] = [
        call("CtxSynchronize"), launch(found["spin"], None, 1000), call("MemcpyDtoH_v2", word, kept, S(8)), word.raw[0]]
    facts["a new context"] = out(V, "CtxCreate_v2", 0, 0)[0]
    facts["the end of the broken one"] = call("CtxDestroy_v2", three)
    call("CtxSetCurrent", two)
    facts["afterwards in the other"] = [launch(found["spin"], None, 1000), call("CtxSynchronize")]
    say("an illegal address in one of two contexts", **facts)


def unmapped():
    """Memory that is unmapped under a kernel that reads it."""
    context, found = start()
    size, at, handle, prop = S(2 * MIB), U(), U(), (c.c_int * 32)(1, 0, 1, 0)
    must(call("MemAddressReserve", c.byref(at), size, S(0), U(0), U(0)))
    must(call("MemCreate", c.byref(handle), size, prop, U(0)))
    must(call("MemMap", at, size, S(0), handle, U(0)))
    must(call("MemSetAccess", at, size, (c.c_int * 3)(1, 0, 3), S(1)))
    must(call("MemsetD32_v2", at, 0, S(1024)))
    must(call("CtxSynchronize"))
    must(launch(found["wait_flag"], stream(), at.value))
    time.sleep(0.1)
    facts = {"unmap": timed(lambda: call("MemUnmap", at, size)), "synchronize": elsewhere(context, lambda: call("CtxSynchronize"))}
    say("memory unmapped under a kernel", **facts)


def placement():
    """Numbers that code rests on: granularity, attributes, pinned memory without DEVICEMAP, pageable memory in a kernel."""
    context, found = start()
    attributes = {number: good(c.c_int, "DeviceGetAttribute", number, 0).value for number in (40, 41, 88, 91, 100, 102, 110, 115, 141)}
    prop = (c.c_int * 32)(1, 0, 1, 0)
    say("attributes", got=attributes, granularity=[good(S, "MemGetAllocationGranularity", prop, option).value for option in (0, 1)])
    for flags in (0, 1, 2, 3):
        room = libc.malloc(3 << 20)
        at = (room + 4095) & ~4095
        facts = {"register": call("MemHostRegister_v2", V(at), S(2 << 20), flags)}
        facts["device pointer"], there = out(U, "MemHostGetDevicePointer_v2", V(at), 0)
        facts["the same address"] = there.value == at
        where, plain = stream(), memory()
        must(launch(found["spin"], where, 100_000_000))
        facts["copy behind a kernel"] = timed(lambda: call("MemcpyHtoDAsync_v2", plain, V(at), S(MIB), where))
        facts["synchronize"], facts["unregister"] = call("StreamSynchronize", where), call("MemHostUnregister", V(at))
        say("pinned with flags", flags=flags, **facts)
    room = libc.malloc(4096)
    facts = {"launch": launch(found["fill"], None, room, 1, 77), "synchronize": call("CtxSynchronize")}
    say("a kernel that writes pageable memory", attribute_88=attributes[88], value=U.from_address(room).value, **facts)


def look_up():
    """cuGetProcAddress of names that are not there, and versions that are not."""
    must(call("Init", 0))
    version = good(c.c_int, "DriverGetVersion").value
    for name, asked in ((b"cuNoSuchThing", version), (b"cuMemAlloc", version + 1000), (b"cuMemAlloc", 99990), (b"cuMemAlloc", 0),
                        (b"cuMemcpyBatchAsync", 12000), (b"", version)):
        found, status, old = V(1), c.c_int(-1), V(1)
        rc = call("GetProcAddress_v2", name, c.byref(found), asked, U(0), c.byref(status))
        say("cuGetProcAddress", name=name.decode(), version=asked, v2=[rc, bool(found.value), status.value],
            v1=[call("GetProcAddress", name, c.byref(old), asked, U(0)), bool(old.value)])


def functions():
    """Loading, and launches of one context's functions in another one's streams."""
    context, found = start()
    rc, mode = out(c.c_int, "ModuleGetLoadingMode")
    module = good(V, "ModuleLoadData", PTX.encode())
    before = good_info()
    function = good(V, "ModuleGetFunction", module, b"nvshare_fill")
    loaded = c.c_int(-1)
    facts = {"loading_mode": [rc, mode.value], "is_loaded": [call("FuncIsLoaded", c.byref(loaded), function), loaded.value], "free_before": before}
    must(launch(function, None, memory().value, 1, 1))
    must(call("CtxSynchronize"))
    facts["free_after_a_launch"] = good_info()
    other = good(V, "CtxCreate_v2", 0, 0)
    theirs = stream()
    facts["launch in another context's stream, that context current"] = launch(found["spin"], theirs, 1000)
    must(call("CtxSetCurrent", context))
    facts["the same, its own context current"] = launch(found["spin"], theirs, 1000)
    facts["an event of one context recorded in the other's stream"] = call("EventRecord", event(), theirs)
    facts["a wait there for an event of the first"] = call("StreamWaitEvent", theirs, event(), 0)
    facts["too many threads"] = call("LaunchKernel", found["spin"], 1, 1, 1, 4096, 1, 1, 0, None, None, None)
    facts["then"] = call("CtxSynchronize")
    call("CtxDestroy_v2", other)
    say("functions", **facts)


def good_info():
    free, total = S(), S()
    must(call("MemGetInfo_v2", c.byref(free), c.byref(total)))
    return free.value >> 10


def pool():
    """Frees of stream-ordered memory: twice, in another stream, by cuMemFree, behind a kernel."""
    _, found = start()
    one, other = stream(), stream()
    piece = good(U, "MemAllocAsync", S(4 * MIB), one)
    facts = {"free": call("MemFreeAsync", piece, one)}
    must(call("CtxSynchronize"))
    piece = good(U, "MemAllocAsync", S(4 * MIB), one)
    must(launch(found["spin"], one, 300_000_000))
    facts["cuMemFree behind a kernel"] = timed(lambda: call("MemFree_v2", piece))
    piece = good(U, "MemAllocAsync", S(4 * MIB), one)
    must(launch(found["spin"], one, 300_000_000))
    must(call("MemFreeAsync", piece, one))
    next_one = good(U, "MemAllocAsync", S(4 * MIB), one)
    elsewhere_at_once = good(U, "MemAllocAsync", S(4 * MIB), other)
    facts["the same piece again in the same stream, in another"] = [next_one.value == piece.value, elsewhere_at_once.value == piece.value]
    facts["attribute of a freed piece"] = out(U, "PointerGetAttribute", 2, elsewhere_at_once)[0]
    say("stream-ordered memory", **facts)
    facts = {"first": call("MemFreeAsync", elsewhere_at_once, other), "again": call("MemFreeAsync", elsewhere_at_once, other)}
    facts["in another stream"], facts["synchronize"] = call("MemFreeAsync", elsewhere_at_once, one), call("CtxSynchronize")
    facts["after that"] = call("MemFreeAsync", elsewhere_at_once, one)
    say("stream-ordered memory freed twice", **facts)


def wrong(what):
    """After this error: every call of its context fails (sticky), or not."""
    def ask():
        context, found = start()
        plain, ready = memory(), event()
        entry = ".visible .entry wrong(.param .u64 at) "
        text = HEAD + (ASSERT if what == "assert" else "") + entry + WRONG[what]
        rc, module = out(V, "ModuleLoadData", text.encode())
        if rc:
            return say("after " + what, load=rc)
        rc = launch(good(V, "ModuleGetFunction", module, b"wrong"), None, plain.value)
        facts = {"launch": rc, "synchronize": call("CtxSynchronize"), "again": call("CtxSynchronize"), "launch again": launch(found["spin"], None, 1000),
                 "cuMemAlloc": out(U, "MemAlloc_v2", S(4096))[0], "cuMemFree": call("MemFree_v2", plain), "cuEventQuery": call("EventQuery", ready),
                 "cuStreamCreate": out(V, "StreamCreate", 1)[0], "push": call("CtxPushCurrent_v2", context), "reset": call("DevicePrimaryCtxReset_v2", 0)}
        facts["afterwards"] = [call("CtxSetCurrent", good(V, "DevicePrimaryCtxRetain", 0)), out(U, "MemAlloc_v2", S(4096))[0]]
        say("after " + what, **facts)
    return ask


def driver_text(path=None):
    """Functions of the driver that jump to, or call, another function of those that are observed: such a call would be counted twice."""
    import struct
    maps = open("/proc/self/maps").read()
    path = path or next(line.split(None, 5)[5] for line in maps.splitlines() if "/libcuda.so" in line)
    data = open(path, "rb").read()
    sections, entry, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + entry * index) for index in range(count)]
    loads = [struct.unpack_from("<IIQQQQ", data, struct.unpack_from("<Q", data, 32)[0] + 56 * index)
             for index in range(struct.unpack_from("<H", data, 56)[0])]
    symbols = next(header for header in headers if header[1] == 11)
    strings = headers[symbols[6]][4]
    found = {}
    for at in range(symbols[4], symbols[4] + symbols[5], 24):
        name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", data, at)
        text = data[strings + name:data.index(b"\0", strings + name)].decode()
        if section and info & 15 == 2 and re.match(OBSERVED, text):
            found[text] = (value, size)
    places, hits = {value: name for name, (value, _) in found.items()}, []
    for name, (value, size) in found.items():
        load = next(one for one in loads if one[0] == 1 and one[3] <= value < one[3] + one[5])
        code = data[value - load[3] + load[2]:][:size or 512]
        for at in range(len(code) - 5):
            if code[at] in (0xE8, 0xE9):
                target = value + at + 5 + struct.unpack_from("<i", code, at + 1)[0]
                if places.get(target, name) != name:
                    hits.append([name, "calls" if code[at] == 0xE8 else "jumps to", places[target]])
    say("functions that reach another observed one directly", functions=len(found), hits=hits)


OBSERVED = (r"^cu(MemAlloc(Async|Managed|Pitch)?|MemFree(Async)?|MemCreate|MemRelease|MemMap|MemUnmap|LaunchKernel(Ex)?|GraphLaunch|"
            r"LaunchCooperativeKernel|MemPrefetchAsync|MemAdvise|CtxDestroy|DevicePrimaryCtxRelease|DevicePrimaryCtxReset|MemAllocFromPoolAsync|StreamSynchronize|EventSynchronize|CtxSynchronize)(_v2)?(_ptsz)?$")


def symbols():
    """The functions of the kernel module that the probes of managed memory are put on."""
    wanted = ("uvm_perf_event_notify", "uvm_perf_init_va_space_events", "uvm_perf_destroy_va_space_events")
    lines = [line.split() for line in open("/proc/kallsyms")]
    there = {name: [line[1] for line in lines if line[2] == name] for name in wanted}
    traced = []
    try:
        traced = [line.split()[0] for line in open("/sys/kernel/tracing/available_filter_functions") if line.split()[0] in wanted]
    except OSError as error:
        traced = str(error)
    try:
        version = open("/sys/module/nvidia_uvm/version").read().strip()
    except OSError as error:
        version = str(error)
    say("kernel module for managed memory", version=version, symbols=there, traceable=traced)


def uvm(url):
    """Beside an agent: 2 GiB of managed memory, prefetched to the device and back, then touched by a kernel; what the agent's figures say."""
    import urllib.request

    def figures():
        text = urllib.request.urlopen(url, timeout=5).read().decode()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("nvshare_uvm")}

    _, found = start()
    size, moved = 2 << 30, {}
    at = good(U, "MemAllocManaged", S(size), 1)
    time.sleep(3)
    last = figures()
    for what, act in {
        "first touch by the device": lambda: call("MemsetD8_v2", at, c.c_ubyte(1), S(size)),
        "prefetch to the host": lambda: call("MemPrefetchAsync", at, S(size), -1, None),
        "prefetch to the device": lambda: call("MemPrefetchAsync", at, S(size), 0, None),
        "touch by the CPU": lambda: 0 * c.string_at(at.value, size).count(b"\x02"),
        "faults of the device": lambda: call("MemsetD8_v2", at, c.c_ubyte(2), S(size)),
    }.items():
        rc = act(), call("CtxSynchronize")
        time.sleep(3)
        now = figures()
        moved[what] = {"rc": rc, **{name: value - last.get(name, 0) for name, value in now.items() if value != last.get(name, 0)}}
        last = now
    say("managed memory, 2 GiB", seen=moved, all=last)


QUESTIONS = {
    "capture_elsewhere": capture_elsewhere, "capture_spoilt": capture_spoilt, "pageable": pageable, "host_waits": host_waits, "contexts": contexts,
    "unmapped": unmapped, "placement": placement, "look_up": look_up, "functions": functions, "pool": pool,
    **{what: wrong(what) for what in WRONG}, "driver_text": driver_text, "symbols": symbols,
}


def main():
    if sys.argv[1:2] == ["uvm"]:
        return uvm(sys.argv[2])
    if sys.argv[1:2] == ["text"]:
        return driver_text(sys.argv[2])
    if sys.argv[1:2] == ["--one"]:
        return QUESTIONS[sys.argv[2]]()
    for name in sys.argv[1:] or QUESTIONS:
        if name not in QUESTIONS:
            sys.exit(f"no question {name}: there are {', '.join(QUESTIONS)}")
        asked = subprocess.Popen([sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            answer, error = asked.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            asked.kill()
            answer, error = asked.communicate()
            error = "not answered within 40 s; " + error
        print(answer, end="", flush=True)
        if asked.returncode:
            say("no answer", to=name, status=asked.returncode, error=error[-300:])


if __name__ == "__main__":
    main()
