#!/usr/bin/env python3
"""Asks a driver how allocation in stream order behaves where a program can see it, one JSON object a line: sizes, addresses, answers
about pieces, wrong calls, what is had again by whom, what a synchronisation gives back, contexts, and what a pool may hold. Two
minutes at most, and a GiB and a half of the card. Needs Python and libcuda.

    python3 docs/gpu/pools.py [NAME...]
"""
import ctypes as c
import subprocess
import sys
import threading
import time

from execution import LEGACY, MIB, S, U, V, call, event, good, launch, memory, must, out, say, start, stream, timed

PER_THREAD = V(2)
SPIN = 200_000_000  # nanoseconds
ATTRIBUTES = {"context": (1, U), "type": (2, c.c_uint), "device pointer": (3, U), "host pointer": (4, U), "sync": (6, c.c_ubyte), "buffer": (7, U),
              "managed": (8, c.c_ubyte), "device": (9, c.c_int), "ipc": (10, c.c_ubyte), "start": (11, U), "size": (12, U), "mapped": (13, c.c_ubyte),
              "handle types": (14, U), "rdma": (15, c.c_ubyte), "access": (16, c.c_uint), "pool": (17, U), "mapping size": (18, U), "mapping base": (19, U),
              "block": (20, U), "decompress": (21, c.c_ubyte)}


def default():
    return good(V, "DeviceGetDefaultMemPool", 0)


def asked(pool, *which):
    values = []
    for number in which:
        value = U()
        rc = call("MemPoolGetAttribute", pool, number, c.byref(value))
        values.append(value.value if rc == 0 else "error %d" % rc)
    return values


def held(pool):
    """Reserved, its high mark, used, its high mark, in KiB where that is whole."""
    return [value if isinstance(value, str) else value / 1024 if value % 1024 else value >> 10 for value in asked(pool, 5, 6, 7, 8)]


def keep(pool, most=1 << 60):
    must(call("MemPoolSetAttribute", pool, 4, c.byref(U(most))))


def take(size, where):
    return good(U, "MemAllocAsync", S(size), where)


def give(piece, where):
    must(call("MemFreeAsync", piece, where))


class Properties(c.Structure):
    _fields_ = [("type", c.c_int), ("handle_types", c.c_int), ("location", c.c_int), ("device", c.c_int), ("windows", V), ("most", S),
                ("usage", c.c_ushort), ("reserved", c.c_ubyte * 54)]


def made(most=0, types=0):
    return out(V, "MemPoolCreate", c.byref(Properties(1, types, 1, 0, None, most)))


def sizes():
    """By bytes asked for: used, reserved, and how far apart two such pieces lie."""
    start()
    pool, where = default(), stream()
    facts = {}
    for size in (1, 255, 256, 257, 511, 512, 513, 1000, 4096, 5000, 1 << 20, (1 << 20) + 1, (2 << 20) + 1, (3 << 20) - 1, (32 << 20) + 1, 1 << 29):
        first = take(size, where)
        used = asked(pool, 7, 5)
        second = take(size, where)
        third = take(size, where)
        facts[size] = used + [second.value - first.value, third.value - second.value, first.value & -first.value]
        for piece in (first, second, third):
            give(piece, where)
        must(call("StreamSynchronize", where))
    say("pool: size: used, reserved, distances of two, alignment", got=facts)


def attributes():
    """What is said of a piece: fresh, at an address inside, after its free; of the default pool's and a made one's."""
    context, _ = start()
    where = stream()
    rc, pool = made()
    names = {context.value: "the context", default().value: "the default pool", pool.value: "the made pool"}

    def said(address, begin):
        facts = {}
        for name, (number, kind) in ATTRIBUTES.items():
            value = kind()
            rc = call("PointerGetAttribute", c.byref(value), number, U(address))
            shown = names.get(value.value, value.value)
            if isinstance(shown, int) and shown >> 30 and name not in ("buffer", "block"):
                shown = "start%+d" % (shown - begin)
            facts[name] = shown if rc == 0 else "error %d" % rc
        base, size = U(), S()
        facts["range"] = [call("MemGetAddressRange_v2", c.byref(base), c.byref(size), U(address)), base.value - begin, size.value]
        return facts

    piece = take(5000, where)
    say("pool: attributes of 5000 bytes", got=said(piece.value, piece.value))
    say("pool: attributes at an address inside, and in the padding", inside=said(piece.value + 77, piece.value), padding=said(piece.value + 5001, piece.value))
    large = take(40 * MIB + 1, where)
    say("pool: attributes of 40 MiB and a byte", got=said(large.value, large.value))
    handle = (c.c_byte * 64)()
    say("pool: other calls", ipc=call("IpcGetMemHandle", handle, piece), retain=out(U, "MemRetainAllocationHandle", V(large.value))[0],
        set_sync=call("PointerSetAttribute", c.byref(c.c_uint(1)), 6, piece), tokens=call("PointerGetAttribute", (c.c_byte * 16)(), 5, piece),
        access=[call("MemGetAccess", c.byref(flags := U()), c.byref((c.c_int * 2)(1, 0)), large), flags.value],
        descriptor=call("MemGetHandleForAddressRange", c.byref(c.c_int()), large, S(2 * MIB), 1, U(0)), prefetch=call("MemPrefetchAsync", large, S(4096), 0, where),
        set_access=call("MemSetAccess", large, S(2 * MIB), c.byref((c.c_int * 3)(1, 0, 3)), S(1)), unmap=call("MemUnmap", large, S(2 * MIB)))
    own = good(U, "MemAllocFromPoolAsync", S(5000), pool, where)
    say("pool: attributes from a made pool", got={key: value for key, value in said(own.value, own.value).items() if key in ("pool", "context", "start", "size", "ipc")})
    give(piece, where)
    say("pool: attributes of a freed piece", at_once=said(piece.value, piece.value))
    must(call("StreamSynchronize", where))
    say("pool: attributes of a freed piece after a synchronisation", later={key: value for key, value in said(piece.value, piece.value).items() if key in ("context", "type", "start", "size", "range", "pool")})


def wrong():
    """Calls that are refused."""
    _, found = start()
    where, other = stream(), stream()
    rc, pool = made()
    piece, plain = take(4096, where), memory()
    null = U()
    facts = {"no bytes": out(U, "MemAllocAsync", S(0), where)[0], "no place": call("MemAllocAsync", None, S(4096), where), "too much": out(U, "MemAllocAsync", S(1 << 50), where)[0],
             "no pool": out(U, "MemAllocFromPoolAsync", S(4096), None, where)[0], "inside": call("MemFreeAsync", U(piece.value + 256), where),
             "null": call("MemFreeAsync", null, where), "cuMemFree inside": call("MemFree_v2", U(piece.value + 256)),
             "free": call("MemFreeAsync", piece, where), "again in the stream": call("MemFreeAsync", piece, where), "again in another": call("MemFreeAsync", piece, other),
             "cuMemFree of it": call("MemFree_v2", piece), "synchronize": call("CtxSynchronize"), "again later": call("MemFreeAsync", piece, where),
             "plain in stream order": call("MemFreeAsync", plain, where), "plain again": call("MemFreeAsync", plain, where)}
    second = take(4096, where)
    facts["cuMemFree"], facts["cuMemFree again"] = call("MemFree_v2", second), call("MemFree_v2", second)
    live = good(U, "MemAllocFromPoolAsync", S(4096), pool, where)
    facts["destroy with a piece"], facts["from the destroyed"] = call("MemPoolDestroy", pool), out(U, "MemAllocFromPoolAsync", S(4096), pool, where)[0]
    facts["attribute of it"], facts["its piece is set"] = call("MemPoolGetAttribute", pool, 7, c.byref(U())), call("MemsetD8Async", live, 1, S(4096), where)
    facts["its piece is freed"] = call("MemFreeAsync", live, where)
    facts["destroy the default"], facts["trim nothing"] = call("MemPoolDestroy", default()), call("MemPoolTrimTo", default(), S(1 << 60))
    gone = stream()
    must(call("StreamDestroy_v2", gone))
    facts["attributes"] = asked(default(), *range(0, 16))
    facts["set"] = [call("MemPoolSetAttribute", default(), number, c.byref(U(0))) for number in range(0, 10)]
    facts["set a high mark to one"] = [call("MemPoolSetAttribute", default(), number, c.byref(U(1))) for number in (6, 8)]
    say("pool: wrong calls", **facts)


def again():
    """Who has again what was freed: the same stream, another while it is busy, with an event between, when it is idle, other sizes."""
    context, found = start()
    one, two, pool = stream(), stream(), default()
    keep(pool)
    facts = {}
    size = 8 * MIB

    def fresh():
        must(call("CtxSynchronize"))
        must(call("MemPoolTrimTo", pool, S(0)))
        piece = take(size, one)
        must(launch(found["spin"], one, SPIN))
        give(piece, one)
        return piece.value

    def had(name, piece, where, much=size):
        began = time.perf_counter()
        new = take(much, where)
        facts[name] = [piece <= new.value < piece + size, held(pool)[0] >> 10, round((time.perf_counter() - began) * 1e3, 2)]
        must(call("StreamSynchronize", where))
        facts[name].append(round((time.perf_counter() - began) * 1e3, 1))
        give(new, where)

    had("the same stream", fresh(), one)
    had("the same stream, smaller", fresh(), one, size // 2)
    had("another, busy", fresh(), two)
    old = fresh()
    ready = event()
    must(call("EventRecord", ready, one))
    must(call("StreamWaitEvent", two, ready, 0))
    had("another, after an event", old, two)
    old = fresh()
    must(call("StreamSynchronize", one))
    had("another, idle", old, two)
    had("the legacy stream", fresh(), LEGACY)
    old = fresh()
    time.sleep(SPIN / 1e9 * 2)
    had("another, idle for long but not asked", old, two)
    for number in (1, 2, 3):
        must(call("MemPoolSetAttribute", pool, number, c.byref(c.c_int(0))))
    had("another, busy, with no reuse allowed", fresh(), two)
    old = fresh()
    must(call("StreamSynchronize", one))
    had("another, idle, with no reuse allowed", old, two)
    for number in (1, 2, 3):
        must(call("MemPoolSetAttribute", pool, number, c.byref(c.c_int(1))))
    # A limit makes it choose: reuse behind the kernel, or refuse.
    rc, small = made(32 * MIB)
    facts["pool of 32 MiB"] = rc
    if rc == 0:
        piece = good(U, "MemAllocFromPoolAsync", S(24 * MIB), small, one)
        must(launch(found["spin"], one, SPIN))
        give(piece, one)
        began = time.perf_counter()
        rc, new = out(U, "MemAllocFromPoolAsync", S(24 * MIB), small, two)
        facts["beyond a limit, from a busy stream"] = [rc, new.value == piece.value, round((time.perf_counter() - began) * 1e3, 1)]
        rc2, more = out(U, "MemAllocFromPoolAsync", S(24 * MIB), small, two)
        facts["beyond a limit"] = [rc2, held(small)]
    say("pool: had again: the same place, reserved MiB, ms of the call, ms with a synchronisation", **facts)


def gives_back():
    """Which calls bring the card what is above the threshold (0): reserved MiB after each."""
    context, found = start()
    one, pool = stream(), default()
    host = (c.c_byte * 4096)()
    other, ready = memory(), event()

    def after(act):
        give(take(64 * MIB, one), one)
        must(call("EventRecord", ready, one))
        time.sleep(0.01)
        before = held(pool)[0] >> 10
        rc = act()
        found = [before, rc, held(pool)[0] >> 10]
        must(call("CtxSynchronize"))
        return found

    calls = {"nothing": lambda: 0, "cuStreamQuery": lambda: call("StreamQuery", one), "cuEventQuery": lambda: call("EventQuery", ready),
             "cuEventSynchronize": lambda: call("EventSynchronize", ready), "cuStreamSynchronize of it": lambda: call("StreamSynchronize", one),
             "cuStreamSynchronize of another": lambda: call("StreamSynchronize", stream()), "cuCtxSynchronize": lambda: call("CtxSynchronize"),
             "cuMemcpyDtoH": lambda: call("MemcpyDtoH_v2", host, other, S(4096)), "cuMemFree": lambda: call("MemFree_v2", memory()),
             "cuMemGetInfo": lambda: call("MemGetInfo_v2", c.byref(S()), c.byref(S())), "cuMemAllocAsync": lambda: call("MemAllocAsync", c.byref(U()), S(512), one),
             "cuMemAlloc": lambda: out(U, "MemAlloc_v2", S(64 * MIB))[0], "cuMemPoolTrimTo": lambda: call("MemPoolTrimTo", pool, S(0))}
    say("pool: gives back: reserved before, answer, after", **{name: after(act) for name, act in calls.items()})
    keep(pool, 100 * MIB)
    pieces = [take(60 * MIB, one) for _ in range(3)]
    facts = {"three of 60": held(pool)}
    for piece in pieces:
        give(piece, one)
    must(call("StreamSynchronize", one))
    facts["freed, threshold 100"] = held(pool)
    pieces = [take(20 * MIB, one) for _ in range(4)]
    facts["four of 20"] = held(pool)
    give(pieces[0], one), give(pieces[2], one)
    must(call("StreamSynchronize", one))
    facts["two freed"] = held(pool)
    must(call("MemPoolTrimTo", pool, S(0)))
    facts["trimmed"] = held(pool)
    keep(pool, 0)
    must(call("MemPoolSetAttribute", pool, 6, c.byref(U(0)))), must(call("MemPoolSetAttribute", pool, 8, c.byref(U(0))))
    facts["high marks reset"] = held(pool)
    say("pool: holds", **facts)
    keep(pool)
    give(take(64 * MIB, one), one), give(take(64 * MIB, one), one)
    must(call("CtxSynchronize"))
    before = held(pool)[0] >> 10
    big = take(200 * MIB, one)
    say("pool: one of 200 MiB after 64 held free: reserved MiB", before=before, after=held(pool)[0] >> 10)


def frees():
    """cuMemFree of a piece behind a kernel of its stream, of another; cuMemFreeAsync of plain memory; from another context."""
    context, found = start()
    one, two, pool = stream(), stream(), default()
    facts = {}
    piece = take(4 * MIB, one)
    must(launch(found["spin"], one, SPIN))
    facts["cuMemFree behind a kernel: answer, ms"] = timed(lambda: call("MemFree_v2", piece))
    facts["then"] = held(pool)
    piece = take(4 * MIB, one)
    must(call("StreamSynchronize", one))
    must(launch(found["spin"], two, SPIN))
    facts["cuMemFree behind another stream's"] = timed(lambda: call("MemFree_v2", piece))
    second = good(V, "CtxCreate_v2", 0, 0)
    mine = stream()
    piece = take(4 * MIB, mine)
    give(piece, mine)
    facts["same piece in another stream of this context"] = take(4 * MIB, stream()).value == piece.value
    live = take(4 * MIB, mine)
    must(call("CtxSynchronize"))
    before = held(pool)
    facts["destroy the context"] = [before, call("CtxDestroy_v2", second), held(pool)]
    must(call("CtxSetCurrent", context))
    facts["free its live piece in another context"] = [call("MemsetD8Async", live, 1, S(4096), one), call("MemFreeAsync", live, one), call("StreamSynchronize", one), held(pool)]
    live = take(4 * MIB, one)
    must(call("CtxSynchronize"))
    facts["reset"] = [held(pool), call("DevicePrimaryCtxReset_v2", 0)]
    must(call("CtxSetCurrent", good(V, "DevicePrimaryCtxRetain", 0)))
    where = stream()
    facts["after the reset"] = [held(pool), call("MemFreeAsync", live, where), call("StreamSynchronize", where), held(pool)]
    say("pool: frees and contexts", **facts)


def threads():
    """The per-thread default stream: what one thread freed, another has again or not; a destroyed stream's pieces."""
    context, found = start()
    pool = default()
    keep(pool)
    facts = {}
    piece = take(4 * MIB, PER_THREAD)
    must(launch(found["spin"], PER_THREAD, SPIN))
    give(piece, PER_THREAD)

    def there():
        must(call("CtxSetCurrent", context))
        facts["another thread's"] = take(4 * MIB, PER_THREAD).value == piece.value
    asker = threading.Thread(target=there)
    asker.start()
    asker.join()
    facts["this thread's"] = take(4 * MIB, PER_THREAD).value == piece.value
    one = stream()
    piece = take(4 * MIB, one)
    must(launch(found["spin"], one, SPIN))
    give(piece, one)
    must(call("StreamDestroy_v2", one))
    two = stream()
    facts["the same handle"], facts["the destroyed stream's, while busy"] = one.value == two.value, take(4 * MIB, two).value == piece.value
    must(call("CtxSynchronize"))
    say("pool: per-thread and destroyed streams", **facts)


def costs():
    """Medians of 2,000, in microseconds, of a pair, from ctypes: warm, other sizes, two streams, synchronised."""
    context, found = start()
    one, two, pool = stream(), stream(), default()
    keep(pool)

    def median(act, count=2000):
        spent = []
        for _ in range(count):
            began = time.perf_counter()
            act()
            spent.append(time.perf_counter() - began)
        return round(sorted(spent)[count // 2] * 1e6, 2)

    nothing = lambda: (call("CtxGetDevice", c.byref(c.c_int())), call("CtxGetDevice", c.byref(c.c_int())))
    facts = {"two trivial calls": median(nothing)}
    for size in (512, 1 << 20, 64 << 20):
        facts["pair of %d" % size] = median(lambda: give(take(size, one), one))
    facts["pair across two streams"] = median(lambda: (give(take(MIB, one), one), give(take(MIB, two), two)))
    facts["pair, synchronised"] = median(lambda: (give(take(MIB, one), one), call("StreamSynchronize", one)))
    live = [take(4096, one) for _ in range(10_000)]
    facts["pair beside 10,000 pieces"] = median(lambda: give(take(MIB, one), one))
    for piece in live[::2]:
        give(piece, one)
    facts["pair beside 5,000 holes"] = median(lambda: give(take(MIB, one), one))
    say("pool: costs", **facts)


QUESTIONS = {found.__name__: found for found in (sizes, attributes, wrong, again, gives_back, frees, threads, costs)}


def main():
    if sys.argv[1:2] == ["--one"]:
        return QUESTIONS[sys.argv[2]]()
    for name in sys.argv[1:] or QUESTIONS:
        if name not in QUESTIONS:
            sys.exit(f"no question {name}: there are {', '.join(QUESTIONS)}")
        child = subprocess.Popen([sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            answer, error = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            child.kill()
            answer, error = child.communicate()
            error += "no answer within 60 s"
        print(answer, end="", flush=True)
        if child.returncode:
            say("pool: " + name, failed=error.strip().splitlines()[-1:] or child.returncode)


if __name__ == "__main__":
    main()
