#!/usr/bin/env python3
"""Asks a driver what of the families that are not plain memory can leave the card and come back: managed memory by prefetches,
arrays by deferred mapping, memory of graphs by a trim. One JSON object a line, each question in a process of its own; a minute, and
12 GiB of the card. Needs Python and libcuda. On the simulator `deferred`, `unmapped` and `graphs`.

    python3 docs/gpu/leaves.py [NAME...]
    python3 docs/gpu/leaves.py evicted       fills the card with plain memory beside managed memory of another process (not asked
                                             by default: too much managed memory can hang a card; here it is 1 GiB)
"""
import ctypes as c
import os
import subprocess
import sys
import time

from execution import MIB, S, U, V, call, good, launch, libc, memory, must, out, say, start, stream

GIB = 1 << 30
HOST, CARD = -1, 0


def free():
    left = S()
    must(call("MemGetInfo_v2", c.byref(left), c.byref(S())))
    return left.value >> 20


def managed(size):
    return good(U, "MemAllocManaged", S(size), 1).value


def set_by_card(at, size, value=1):
    must(call("MemsetD8_v2", U(at), c.c_ubyte(value), S(size)))
    must(call("CtxSynchronize"))


def moved(ranges, where, on):
    """Prefetches them; when the calls returned, when all was done, and how much more of the card is free then."""
    before, began = free(), time.perf_counter()
    codes = {call("MemPrefetchAsync", U(at), S(size), where, on) for at, size in ranges}
    returned = time.perf_counter() - began
    must(call("StreamSynchronize", on))
    done = time.perf_counter() - began
    return {"rc": sorted(codes), "ms_calls": round(returned * 1e3, 2), "ms": round(done * 1e3, 1), "mib_freed": free() - before}


def byte(at):
    return c.cast(at, c.POINTER(c.c_ubyte))[0]


def prefetches():
    size, on = 8 * GIB, stream()
    before = free()
    at = managed(size)
    whole = [(at, size)]
    say("managed, made", mib_taken=before - free())
    set_by_card(at, size)
    say("managed, 8 GiB set by the card", mib_taken=before - free())
    say("out", **moved(whole, HOST, on))
    say("out again", **moved(whole, HOST, on))
    say("in", **moved(whole, CARD, on))
    say("in again", **moved(whole, CARD, on))
    pieces = [(at + offset, 64 * MIB) for offset in range(0, size, 64 * MIB)]
    say("out in pieces of 64 MiB", **moved(pieces, HOST, on))
    say("in in pieces of 64 MiB", **moved(pieces, CARD, on))
    libc.memset(V(at + size // 2), 2, S(size // 2))
    say("the host wrote the second half", mib_taken=before - free())
    say("out, the half that is there", **moved(whole, HOST, on))
    say("in, both halves", **moved(whole, CARD, on))
    say("bytes", first=byte(at), last=byte(at + size - 1))
    for name, advice, where in (("preferred on the card", 3, CARD), ("mostly read", 1, CARD), ("accessed by the host", 5, HOST)):
        rc = call("MemAdvise", U(at), S(size), advice, where)
        moved(whole, CARD, on)
        say(f"out, {name}", advice=rc, **moved(whole, HOST, on))
        call("MemAdvise", U(at), S(size), advice + 1, where)
    moved(whole, CARD, on)
    must(launch(KERNELS["spin"], stream(), 1_000_000_000))
    say("out beside a kernel of another stream that takes a second", **moved(whole, HOST, on))
    must(call("CtxSynchronize"))
    say("freed", rc=call("MemFree_v2", U(at)), after=call("MemPrefetchAsync", U(at), S(size), HOST, on))


def faults():
    """What a kernel's faults cost beside a prefetch: a memset of what is on the host."""
    size, on = 2 * GIB, stream()
    at = managed(size)
    set_by_card(at, size)
    for name in ("by faults", "after a prefetch"):
        moved([(at, size)], HOST, on)
        began = time.perf_counter()
        if name != "by faults":
            must(call("MemPrefetchAsync", U(at), S(size), CARD, None))
        set_by_card(at, size)
        say(f"2 GiB back and set, {name}", ms=round((time.perf_counter() - began) * 1e3, 1))


class Form(c.Structure):
    _fields_ = [("width", S), ("height", S), ("depth", S), ("format", c.c_int), ("channels", c.c_uint), ("flags", c.c_uint)]


class Required(c.Structure):
    _fields_ = [("size", S), ("alignment", S), ("rest", c.c_uint * 4)]


class Properties(c.Structure):
    _fields_ = [("kind", c.c_int), ("handles", c.c_int), ("place", c.c_int), ("device", c.c_int), ("windows", V),
                ("compression", c.c_ubyte), ("rdma", c.c_ubyte), ("usage", c.c_ushort), ("rest", c.c_ubyte * 4)]


class Mapping(c.Structure):
    # Where in the array is ignored for arrays whose mapping is deferred; it has numbers of 64 bits.
    _fields_ = [("kind", c.c_int), ("resource", V), ("part", c.c_int), ("where", U * 4), ("operation", c.c_int),
                ("handle_kind", c.c_int), ("handle", U), ("offset", U), ("devices", c.c_uint), ("flags", c.c_uint), ("rest", c.c_uint * 2)]


class Copy(c.Structure):
    _fields_ = [("from_x", S), ("from_y", S), ("from_kind", c.c_int), ("from_host", V), ("from_device", U), ("from_array", V),
                ("from_pitch", S), ("to_x", S), ("to_y", S), ("to_kind", c.c_int), ("to_host", V), ("to_device", U), ("to_array", V),
                ("to_pitch", S), ("width", S), ("height", S)]


DEFERRED, SURFACE, LAYERED, GATHER = 0x80, 2, 1, 8
WIDTH, HEIGHT = 4096, 2048


FORMS = {"plain": (0, 0), "surface": (SURFACE, 0), "layered": (LAYERED, 4), "gather": (GATHER, 0)}


def deferred():
    # An error ends the process's contexts, so each has one of its own.
    for name in FORMS:
        for usage in ("1", "0"):
            subprocess.run([sys.executable, __file__, "one_deferred", name, usage], timeout=30)


def one_deferred(name, usage):
    rc, made = array(*FORMS[name])
    say(f"a deferred array, {name}", tile_pool=usage, create=rc, **(mapped(made, int(usage)) if rc == 0 else {}))


def unmapped():
    say("a copy to a deferred array with nothing behind it", rc=copied(array()[1], 1), after=call("CtxSynchronize"))


def array(flags=0, depth=0):
    return out(V, "Array3DCreate_v2", c.byref(Form(WIDTH, HEIGHT, depth, 0x20, 1, flags | DEFERRED)))


def mapped(array, usage):
    need, facts, on = Required(), {}, stream()
    facts["requirements"] = call("ArrayGetMemoryRequirements", c.byref(need), array, 0)
    facts["mib"], facts["kib_alignment"] = need.size >> 20, need.alignment >> 10
    asked = Form()
    facts["descriptor"] = call("Array3DGetDescriptor_v2", c.byref(asked), array), hex(asked.flags)

    def handle(usage):
        return out(U, "MemCreate", S(-(-need.size // (2 * MIB)) * 2 * MIB), c.byref(Properties(1, 0, 1, 0, usage=usage)), U(0))

    def mapping(operation, of=0):
        begun = time.perf_counter()
        one = Mapping(0, array, 0, (U * 4)(), operation, 0, of, 0, 1, 0)
        rc = call("MemMapArrayAsync", c.byref(one), 1, on)
        return rc, call("StreamSynchronize", on), round((time.perf_counter() - begun) * 1e3, 3)

    rc, first = handle(usage)
    facts["mapped"] = rc, mapping(1, first.value)
    facts["write and read"] = copied(array, 7)
    facts["unmap"] = mapping(2)
    facts["another"] = mapping(1, handle(usage)[1].value)
    facts["read what is there"] = read(array)
    facts["write and read again"] = copied(array, 9)
    facts["destroyed"] = call("ArrayDestroy", array), call("MemRelease", first)
    return facts


def row(array, value, to_array):
    host = (c.c_ubyte * (WIDTH * 4))(*([value] * (WIDTH * 4)))
    place = c.cast(host, V)
    one = Copy(from_kind=1, from_host=place, to_kind=3, to_array=array, width=WIDTH * 4, height=1) if to_array else \
        Copy(from_kind=3, from_array=array, to_kind=1, to_host=place, width=WIDTH * 4, height=1)
    return call("Memcpy2D_v2", c.byref(one)), host[5]


def read(array):
    return row(array, 0, False)


def copied(array, value):
    return row(array, value, True)[0], read(array)


def graphs():
    for size in (64 * MIB, GIB):
        on, kept, g, x = stream(), memory(MIB), V(), V()
        must(call("StreamBeginCapture_v2", on, 2))
        at = good(U, "MemAllocAsync", S(size), on)
        must(call("MemsetD8Async", at, c.c_ubyte(5), S(size), on))
        must(call("MemcpyDtoDAsync_v2", kept, U(at.value + size - MIB), S(MIB), on))
        must(call("MemFreeAsync", at, on))
        must(call("StreamEndCapture", on, c.byref(g)))
        must(call("GraphInstantiateWithFlags", c.byref(x), g, U(0)))

        def launched():
            must(call("MemsetD8_v2", kept, c.c_ubyte(0), S(MIB)))
            begun = time.perf_counter()
            rc = call("GraphLaunch", x, on)
            launch_took = time.perf_counter() - begun
            must(call("StreamSynchronize", on))
            took, got = time.perf_counter() - begun, c.c_ubyte()
            must(call("MemcpyDtoH_v2", c.byref(got), U(kept.value + MIB - 1), S(1)))
            return {"rc": rc, "us_launch": round(launch_took * 1e6, 1), "us": round(took * 1e6, 1), "byte": got.value}

        before = free()
        say(f"a graph with {size >> 20} MiB, first", **launched(), mib_taken=before - free())
        say("warm", **launched())
        begun = time.perf_counter()
        rc = call("DeviceGraphMemTrim", 0)
        say("trimmed", rc=rc, us=round((time.perf_counter() - begun) * 1e6, 1), mib_taken=before - free())
        say("after the trim", **launched(), mib_taken=before - free())
        must(call("GraphUpload", x, on))
        must(call("StreamSynchronize", on))
        must(call("DeviceGraphMemTrim", 0))
        say("uploaded, trimmed, and launched", **launched(), mib_taken=before - free())
        must(launch(KERNELS["spin"], stream(), 1_000_000_000))
        begun = time.perf_counter()
        rc = call("DeviceGraphMemTrim", 0)
        say("trimmed beside a kernel that takes a second", rc=rc, ms=round((time.perf_counter() - begun) * 1e3, 1), mib_taken=before - free())
        must(call("CtxSynchronize"))


def evicted():
    child = subprocess.Popen([sys.executable, __file__, "holds"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    taken = []
    while free() > 600:
        taken.append(memory(min(8 * GIB, (free() - 500) * MIB)))
    for mib in (256, 768):
        before, begun = free(), time.perf_counter()
        rc, at = out(U, "MemAlloc_v2", S(mib * MIB))
        say("plain memory beside managed memory of another process", mib=mib, free_before=before, rc=rc,
            ms=round((time.perf_counter() - begun) * 1e3, 1), free_after=free())
        taken.append(at)
    child.stdin.write("go\n")
    child.stdin.flush()
    say("the other's bytes", right=child.stdout.readline().strip())
    child.wait(60)
    say("free at the end", mib=free())


def holds():
    at = managed(GIB)
    set_by_card(at, GIB, 3)
    print("ready", flush=True)
    sys.stdin.readline()
    print(all(byte(at + offset) == 3 for offset in range(0, GIB, 2 * MIB)), flush=True)


if __name__ == "__main__":
    names = sys.argv[1:] or ["prefetches", "faults", "deferred", "unmapped", "graphs"]
    if names[0] in globals() and (names[0] in ("holds", "one_deferred") or len(names) == 1 and os.environ.get("LEAVES_ASKS")):
        _, KERNELS = start()
        globals()[names[0]](*names[1:])
        sys.exit()
    for one in names:
        try:
            ended = subprocess.run([sys.executable, __file__, one], env={**os.environ, "LEAVES_ASKS": "1"}, timeout=100).returncode
        except subprocess.TimeoutExpired:
            ended = "not done after 100 s"
        if ended != 0:
            say(one, ended=ended)
