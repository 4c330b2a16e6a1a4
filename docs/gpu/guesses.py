#!/usr/bin/env python3
"""Asks a driver what docs/driver-assumptions.md calls not confirmed, as far as a program can ask it: arrays, memory of graphs, pools,
green contexts, errors for good, full streams, and what two cards do to one another. One JSON object a line, each question in a
process of its own; a minute, and half a GiB of the card. Needs Python and libcuda.

    python3 docs/gpu/guesses.py [NAME...]
"""
import ctypes as c
import subprocess
import sys
import threading
import time

from execution import HEAD, LEGACY, MIB, PTX, WRONG, ASSERT, S, U, V, call, cuda, event, good, kernels, launch, memory, must, out, say, start, stream, timed

HELD = 2_000_000_000  # nanoseconds


def current(context):
    must(call("CtxSetCurrent", context))


def free():
    left, total = S(), S()
    must(call("MemGetInfo_v2", c.byref(left), c.byref(total)))
    return left.value


def taken(act):
    """What an action takes of the card, in KiB, and what it answers."""
    before = free()
    answer = act()
    return (before - free()) >> 10, answer


def thread(context, act):
    def run():
        current(context)
        act()

    one = threading.Thread(target=run, daemon=True)
    one.start()
    return one


# Arrays


class Array(c.Structure):
    _fields_ = [("width", S), ("height", S), ("depth", S), ("format", c.c_int), ("channels", c.c_uint), ("flags", c.c_uint)]


def array(width, height=0, depth=0, channels=1, flags=0):
    return out(V, "Array3DCreate_v2", c.byref(Array(width, height, depth, 1, channels, flags)))


def to_array(where, source, width, x=0, stream_of=None):
    """A row of host memory into an array, by the form for any kind."""
    words = [0, 0, 0, 0, 1, source, 0, 0, 0, 1 << 16, 1, x, 0, 0, 0, 3, 0, 0, where.value, 0, 0, 0, width, 1, 1]
    block = c.byref((U * len(words))(*words))
    return call("Memcpy3D_v2", block) if stream_of is None else call("Memcpy3DAsync_v2", block, stream_of)


def arrays():
    context, _ = start()
    array(64)  # Whatever the first one costs.
    facts = {}
    for name, shape in {"4096 x 4096 x 4 bytes": (4096, 4096, 0, 4), "4096 x 4096 x 1": (4096, 4096), "64 x 64 x 1": (64, 64), "100 x 100 x 4": (100, 100, 0, 4),
                        "64 Mi in a row": (1 << 17,), "256 x 256 x 256": (256, 256, 256), "1000 x 3 x 4": (1000, 3, 0, 4), "17 x 4097 x 1": (17, 4097),
                        "8 layers of 1000 x 1000": (1000, 1000, 8, 1, 1)}.items():
        facts[name] = [size if isinstance(size, int) else size.value for size in (lambda kib, made: (kib, made[0]))(*taken(lambda: array(*shape)))]
    facts["200 of 64 x 64"] = taken(lambda: [array(64, 64)[0] for _ in range(200)].count(0))
    say("arrays: KiB of the card, answer", got=facts)
    mip = V()
    rc = call("MipmappedArrayCreate", c.byref(mip), c.byref(Array(1024, 1024, 0, 1, 4, 0)), 5)
    rc_level, level = out(V, "MipmappedArrayGetLevel", mip, 1)
    say("a level of an array", made=rc, level=rc_level, destroy=call("ArrayDestroy", level), whole=call("MipmappedArrayDestroy", mip))
    _, flat = array(64, 64, 0, 4)
    _, row = array(64, 0, 0, 4)
    host = c.create_string_buffer(4096)
    at = c.addressof(host)
    plain = memory()
    facts = {"right": to_array(flat, at, 64), "cuts an element": to_array(flat, at, 3), "begins in one": to_array(flat, at, 8, 2),
             "leaves it": to_array(flat, at, 260), "begins behind it": to_array(flat, at, 4, 256), "empty": to_array(flat, at, 0)}
    for name, where in (("flat", flat), ("one row", row)):
        facts[name] = {"HtoA": call("MemcpyHtoA_v2", where, S(0), host, S(64)), "AtoH": call("MemcpyAtoH_v2", host, where, S(0), S(64)),
                       "DtoA": call("MemcpyDtoA_v2", where, S(0), plain, S(64)), "AtoD": call("MemcpyAtoD_v2", plain, where, S(0), S(64)),
                       "AtoA": call("MemcpyAtoA_v2", where, S(0), where, S(128), S(64)), "cut": call("MemcpyHtoA_v2", where, S(2), host, S(7)),
                       "over": call("MemcpyHtoA_v2", where, S(128), host, S(256)), "HtoAAsync": call("MemcpyHtoAAsync_v2", where, S(0), host, S(64), None)}
    say("copies into arrays", got=facts, sync=call("CtxSynchronize"))
    facts = {}
    for name, offset, bytes in ("across the end of a row", 200, 100), ("the second row", 256, 64), ("behind the last row", 64 * 256, 4), ("the last bytes", 64 * 256 - 4, 4):
        c.memset(host, 0, 4096)
        must(call("MemsetD8_v2", plain, c.c_ubyte(5), S(512)))
        facts[name] = [call("MemcpyDtoA_v2", flat, S(offset), plain, S(bytes)), call("MemcpyAtoH_v2", host, flat, S(offset), S(bytes)), host.raw.count(5)]
    say("rows of an array of 64 rows of 256 bytes: in, out, bytes that arrived", got=facts)
    other = good(V, "CtxCreate_v2", 0, 0)
    theirs, before = stream(), free()
    facts = {"into another context's array, own stream": to_array(flat, at, 64, 0, theirs), "synchronous": to_array(flat, at, 64)}
    _, big = array(4096, 4096, 0, 4)
    facts["held"] = (before - free()) >> 10
    current(context)
    facts["their array, their stream, this context current"] = to_array(big, at, 64, 0, theirs)
    facts["their array, this context's stream"] = to_array(big, at, 64, 0, stream())
    facts["end"] = call("CtxDestroy_v2", other)
    facts["back"] = (free() - before) >> 10
    say("arrays and contexts", **facts, sync=call("CtxSynchronize"))


# Memory of graphs


def node(graph, size):
    """A node that allocates: its answer, itself, its address."""
    words = (U * 15)(1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, size, 0)
    rc, made = out(V, "GraphAddMemAllocNode", graph, None, S(0), words)
    return rc, made, words[14]


def graph_of(size, gives_back):
    graph = good(V, "GraphCreate", 0)
    rc, made, at = node(graph, size)
    must(rc)
    if gives_back:
        must(out(V, "GraphAddMemFreeNode", graph, (V * 1)(made), S(1), U(at))[0])
    return graph, made, at


def ready(graph):
    return out(V, "GraphInstantiateWithFlags", graph, c.c_ulonglong(0))


def account():
    values = []
    for which in range(4):
        value = U()
        must(call("DeviceGetGraphMemAttribute", 0, which, c.byref(value)))
        values.append(value.value >> 10)
    return values


def graph_memory():
    context, found = start()
    where = stream()
    steps, begun = [], free()

    def step(name, rc):
        steps.append([name, rc, account(), (begun - free()) >> 10])

    step("nothing", 0)
    graph, made, at = graph_of(64 * MIB, False)
    step("a node that allocates 64 MiB", 0)
    rc, run = ready(graph)
    step("instantiated", rc)
    rc, second = ready(graph)
    steps.append(["a second instantiation", rc])
    steps.append(["cuGraphClone", out(V, "GraphClone", graph)[0]])
    steps.append(["destroy the node", call("GraphDestroyNode", made)])
    parent = good(V, "GraphCreate", 0)
    steps.append(["as a child", out(V, "GraphAddChildGraphNode", parent, None, S(0), graph)[0]])
    step("launched", [call("GraphLaunch", run, where), call("StreamSynchronize", where)])
    step("launched again", [call("GraphLaunch", run, where), call("CtxSynchronize")])
    step("freed in a stream", [call("MemFreeAsync", U(at), where), call("CtxSynchronize")])
    step("trimmed", call("DeviceGraphMemTrim", 0))
    step("launched once more", [call("GraphLaunch", run, where), call("StreamSynchronize", where)])
    step("freed with cuMemFree", call("MemFree_v2", U(at)))
    step("trimmed", call("DeviceGraphMemTrim", 0))
    two, _, there = graph_of(64 * MIB, True)
    three, _, elsewhere = graph_of(64 * MIB, True)
    rc = [ready(two), ready(three)]
    steps.append(["addresses of three graphs", [hex(x) for x in (at, there, elsewhere)]])
    step("one that gives back, launched", [call("GraphLaunch", rc[0][1], where), call("StreamSynchronize", where)])
    step("another one beside it", [call("GraphLaunch", rc[1][1], where), call("StreamSynchronize", where)])
    step("trimmed", call("DeviceGraphMemTrim", 0))
    slow, _, _ = graph_of(64 * MIB, True)
    both = [stream(), stream()]
    steps.append(["both at once, behind kernels", [launch(found["spin"], both[0], 100_000_000), launch(found["spin"], both[1], 100_000_000),
                                                  call("GraphLaunch", rc[0][1], both[0]), call("GraphLaunch", rc[1][1], both[1])]])
    step("before they ran", 0)
    step("after", call("CtxSynchronize"))
    info = (c.c_int * 8)()
    steps.append(["update with a twin", [call("GraphExecUpdate_v2", rc[0][1], slow, info), info[0]]])
    captured = stream()
    must(call("StreamBeginCapture_v2", captured, 2))
    steps.append(["launch into a capture", [call("GraphLaunch", rc[0][1], captured), call("StreamEndCapture", captured, c.byref(V()))]])
    step("the executable graphs destroyed", [call("GraphExecDestroy", one) for _, one in rc] + [call("CtxSynchronize")])
    step("the graphs destroyed", [call("GraphDestroy", one) for one in (two, three, slow)])
    rc, again = ready(graph)
    step("launched, never freed", [rc, call("GraphLaunch", again if not rc else run, where), call("StreamSynchronize", where)])
    word = c.create_string_buffer(8)
    step("graph and executable destroyed", [call("GraphExecDestroy", run), call("GraphDestroy", graph), call("MemcpyDtoH_v2", word, U(at), S(8))])
    step("freed", [call("MemFree_v2", U(at)), call("DeviceGraphMemTrim", 0)])
    say("memory of graphs: step, answer, [used, high, reserved, high] in KiB, KiB of the card", steps=steps)
    steps = []
    must(call("DeviceGraphMemTrim", 0))
    graphs = {mib: graph_of(mib * MIB, True)[0] for mib in (64, 32, 100)}
    twin = graph_of(64 * MIB, True)[0]
    runs = {**{mib: ready(graph)[1] for mib, graph in graphs.items()}, "twin": ready(twin)[1]}
    step("nothing", 0)
    for name, order in {"twins in one stream, not waited for": (64, "twin"), "of 32 after 64": (64, 32), "of 100 after 64": (64, 100), "of 64 after 100": (100, 64)}.items():
        must(launch(found["spin"], where, 50_000_000))
        for one in order:
            must(call("GraphLaunch", runs[one], where))
            if not name.startswith("twins"):
                must(call("StreamSynchronize", where))
        step(name, call("StreamSynchronize", where))
        step("trimmed", call("DeviceGraphMemTrim", 0))
    say("memory of graphs of several sizes", steps=steps)
    graph, _, at = graph_of(64 * MIB, False)
    _, run = ready(graph)
    must(call("GraphLaunch", run, where)), must(call("CtxSynchronize"))
    held = account()
    facts = {"held": held, "release": call("DevicePrimaryCtxRelease_v2", 0), "account": [call("DeviceGetGraphMemAttribute", 0, 2, c.byref(U()))]}
    current(good(V, "DevicePrimaryCtxRetain", 0))
    facts["with a context again"] = account()
    facts["trimmed"] = call("DeviceGraphMemTrim", 0), account()
    say("memory of graphs and the end of the last context", **facts)


# Pools


def pools():
    context, _ = start()
    pool, where = good(V, "DeviceGetDefaultMemPool", 0), stream()

    def held():
        values = []
        for which in (5, 7):  # reserved, used
            value = U()
            must(call("MemPoolGetAttribute", pool, which, c.byref(value)))
            values.append(value.value >> 10)
        return values

    facts = {}
    for kib in (4, 1024, 8 << 10, 16 << 10, 31 << 10, 33 << 10, 40 << 10, 64 << 10, 100 << 10, 512 << 10):
        piece = good(U, "MemAllocAsync", S(kib << 10), where)
        must(call("StreamSynchronize", where))
        facts[kib] = held()
        must(call("MemFreeAsync", piece, where))
        must(call("StreamSynchronize", where))
        must(call("MemPoolTrimTo", pool, S(0)))
    say("pools: KiB asked, [reserved, used]", got=facts, empty=held())
    most = U(1 << 60)
    must(call("MemPoolSetAttribute", pool, 4, c.byref(most)))
    must(call("MemFreeAsync", good(U, "MemAllocAsync", S(100 * MIB), where), where))
    must(call("CtxSynchronize"))
    facts = {"before": held(), "release": call("DevicePrimaryCtxRelease_v2", 0)}
    facts["without a context"] = held()
    current(good(V, "DevicePrimaryCtxRetain", 0))
    facts["KiB that a trim brings"] = -taken(lambda: call("MemPoolTrimTo", pool, S(0)))[0]
    value = U()
    must(call("MemPoolGetAttribute", pool, 4, c.byref(value)))
    say("a pool and the end of the last context", **facts, after=held(), threshold_kept=value.value == 1 << 60)


# Contexts


def green():
    """What a green context keeps, and what of its streams is said."""
    must(call("Init", 0))
    primary = good(V, "DevicePrimaryCtxRetain", 0)
    current(primary)
    resource, part, rest, count = (c.c_byte * 144)(), (c.c_byte * 144)(), (c.c_byte * 144)(), c.c_uint(1)
    facts = {"resource": call("DeviceGetDevResource", 0, c.byref(resource), 1),
             "split": call("DevSmResourceSplitByCount", part, c.byref(count), resource, rest, 0, 8)}
    rc, description = out(V, "DevResourceGenerateDesc", part, 1)
    facts["description"] = rc
    rc, made = out(V, "GreenCtxCreate", description, 0, 1)
    facts["create"] = rc
    if rc:
        return say("green contexts", **facts)
    as_context = good(V, "CtxFromGreenCtx", made)
    names = {primary.value: "primary", as_context.value: "green", made.value: "green handle", None: None}
    current(as_context)
    for name, where in (("legacy", LEGACY), ("per thread", V(2)), ("own", good(V, "GreenCtxStreamCreate", made, 1, 0))):
        one, two = V(), V()
        rc = call("StreamGetCtx", where, c.byref(one))
        rc2 = call("StreamGetCtx_v2", where, c.byref(one_v2 := V()), c.byref(two)) if hasattr(cuda, "cuStreamGetCtx_v2") else None
        facts[name] = [rc, names.get(one.value, "?"), rc2, names.get(one_v2.value, "?"), names.get(two.value, "?")]
    plain = memory(64 * MIB)
    must(call("MemsetD8_v2", plain, c.c_ubyte(7), S(8)))
    must(call("CtxSynchronize"))

    def state():
        flags, active = c.c_uint(), c.c_int()
        return call("DevicePrimaryCtxGetState", 0, c.byref(flags), c.byref(active)), active.value

    word = c.create_string_buffer(8)
    facts["retained"] = state()
    facts["release"] = call("DevicePrimaryCtxRelease_v2", 0), state(), call("MemcpyDtoH_v2", word, plain, S(8)), word.raw[0]
    facts["destroy"] = call("GreenCtxDestroy", made), state()
    current(None)
    before = out(U, "PointerGetAttribute", 2, plain)[0]
    again = good(V, "DevicePrimaryCtxRetain", 0)
    current(again)
    facts["retained again"] = state(), "the same handle" if again.value == primary.value else "another handle"
    facts["its memory"] = before, out(U, "PointerGetAttribute", 2, plain)[0], call("MemFree_v2", plain)
    say("green contexts", **facts)


def gone():
    """Calls while the current context is the primary one after its reset."""
    context, _ = start()
    mine = memory()
    other = good(V, "CtxCreate_v2", 0, 0)
    theirs = memory()
    current(context)
    facts = {"reset": call("DevicePrimaryCtxReset_v2", 0)}
    for name in ("CtxGetDevice", "CtxGetCurrent", "CtxGetFlags"):
        facts[name] = out(V, name)[0]
    facts["CtxGetApiVersion"], facts["StreamQuery"] = call("CtxGetApiVersion", None, c.byref(c.c_uint())), call("StreamQuery", None)
    for name, at in (("memory of another context", theirs.value), ("what was its memory", mine.value), ("nothing", 0), ("no memory", 0x123456000)):
        facts["free of " + name] = call("MemFree_v2", U(at))
    facts["alloc"] = out(U, "MemAlloc_v2", S(4096))[0]
    facts["info"] = call("MemGetInfo_v2", c.byref(S()), c.byref(S()))
    facts["copy"] = call("MemcpyDtoH_v2", c.create_string_buffer(8), mine, S(8))
    facts["set"], facts["host"] = call("MemsetD8_v2", theirs, c.c_ubyte(1), S(8)), out(V, "MemHostAlloc", S(4096), 0)[0]
    facts["managed"], facts["stream"] = out(U, "MemAllocManaged", S(4096), 1)[0], out(V, "StreamCreate", 1)[0]
    facts["free in a stream"] = call("MemFreeAsync", theirs, None)
    facts["questions about memory"] = [out(U, "PointerGetAttribute", which, theirs)[0] for which in (1, 2, 9, 11)], call("MemGetAddressRange_v2", c.byref(U()), c.byref(S()), theirs)
    facts["set current"] = call("CtxSetCurrent", context)
    current(None)
    facts["without any: attribute, range, info, alloc, set"] = [
        out(U, "PointerGetAttribute", 2, theirs)[0], call("MemGetAddressRange_v2", c.byref(U()), c.byref(S()), theirs),
        call("MemGetInfo_v2", c.byref(S()), c.byref(S())), out(U, "MemAlloc_v2", S(4096))[0], call("MemsetD8_v2", theirs, c.c_ubyte(1), S(8))]
    current(other)
    facts["the other's memory is still there"] = out(U, "PointerGetAttribute", 2, theirs)[0]
    say("under a context that was reset", **facts)


def broken_apart():
    """An illegal address on one card, and contexts of another one."""
    must(call("Init", 0))
    theirs = good(V, "CtxCreate_v2", 0, 1)
    found, kept = kernels(), memory()
    good(V, "CtxCreate_v2", 0, 0)
    launch(kernels()["fill"], None, 8, 1, 1)
    facts = {"there": call("CtxSynchronize")}
    current(theirs)
    facts["on the other card: synchronize, launch, copy"] = [call("CtxSynchronize"), launch(found["spin"], None, 1000), call("MemcpyDtoH_v2", c.create_string_buffer(8), kept, S(8))]
    facts["a new context there"] = out(V, "CtxCreate_v2", 0, 1)[0]
    say("an illegal address and another card", **facts)


def end_of_all():
    """Whether a context works that is made after every other one with an error for good is gone."""
    must(call("Init", 0))
    one, two = good(V, "CtxCreate_v2", 0, 0), good(V, "CtxCreate_v2", 0, 0)
    launch(kernels()["fill"], None, 8, 1, 1)
    facts = {"error": call("CtxSynchronize")}
    facts["a third beside them"], third = out(V, "CtxCreate_v2", 0, 0)
    facts["ends"] = [call("CtxDestroy_v2", one) for one in (third, two, one) if one.value]
    rc, three = out(V, "CtxCreate_v2", 0, 0)
    facts["a new one"] = rc
    if not rc:
        facts["works"] = [out(U, "MemAlloc_v2", S(4096))[0], call("CtxSynchronize")]
    facts["primary"] = out(V, "DevicePrimaryCtxRetain", 0)[0]
    say("after the end of all contexts with an illegal address", **facts)


MORE = {
    "illegal address": WRONG["illegal address"], **WRONG,
    "wrong address space": "{ .local .b32 here; .reg .u64 %a; .reg .u32 %v; mov.u64 %a, here; cvta.local.u64 %a, %a; atom.add.u32 %v, [%a], 1;"
                           " ld.param.u64 %a, [at]; st.global.u32 [%a], %v; ret; }",
    "endless calls": None, "illegal instruction": "{ .reg .u64 %a; ld.param.u64 %a, [at]; st.global.u64 [%a], %a; ret; }",
}
ENDLESS = (".func (.reg .u32 %r) deep(.reg .u32 %n) { .local .b32 room[64]; .reg .u64 %a; .reg .u32 %m; mov.u64 %a, room; cvta.local.u64 %a, %a; st.volatile.u32 [%a], %n;"
           " add.u32 %m, %n, 1; call (%r), deep, (%m); ld.volatile.u32 %m, [%a]; add.u32 %r, %r, %m; ret; }\n"
           ".visible .entry wrong(.param .u64 at) { .reg .u64 %a; .reg .u32 %v; mov.u32 %v, 0; call (%v), deep, (%v); ld.param.u64 %a, [at]; st.global.u32 [%a], %v; ret; }")


def broken_image(text):
    """The machine code of a module, with nonsense for its first instructions."""
    state, image, size = V(), V(), S()
    must(call("LinkCreate_v2", 0, None, None, c.byref(state)))
    must(call("LinkAddData_v2", state, 1, text, S(len(text) + 1), b"wrong", 0, None, None))
    must(call("LinkComplete", state, c.byref(image), c.byref(size)))
    data = bytearray(c.string_at(image.value, size.value))
    import struct
    sections, count, names = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 60)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, sections + 64 * index) for index in range(count)]
    for head in heads:
        name = data[heads[names][4] + head[0]:].split(b"\0", 1)[0]
        if name == b".text.wrong":
            data[head[4]:head[4] + 16] = b"\xff" * 16
            return bytes(data)
    raise LookupError("no code in the image")


def error(what):
    def ask():
        must(call("Init", 0))
        bystander = good(V, "CtxCreate_v2", 0, 0)
        found, kept = kernels(), memory()
        must(call("MemsetD8_v2", kept, c.c_ubyte(7), S(8)))
        guilty = good(V, "CtxCreate_v2", 0, 0)
        text = (HEAD + (ASSERT if what == "assert" else "") + (ENDLESS if what == "endless calls" else ".visible .entry wrong(.param .u64 at) " + MORE[what])).encode()
        rc, module = out(V, "ModuleLoadData", broken_image(text) if what == "illegal instruction" else text)
        if rc:
            return say("an error: " + what, load=rc)
        facts = {"launch": launch(good(V, "ModuleGetFunction", module, b"wrong"), None, memory().value)}
        facts["there, twice"] = call("CtxSynchronize"), call("CtxSynchronize")
        current(bystander)
        word = c.create_string_buffer(8)
        facts["in another context: synchronize, launch, copy, value"] = [
            call("CtxSynchronize"), launch(found["spin"], None, 1000), call("MemcpyDtoH_v2", word, kept, S(8)), word.raw[0]]
        facts["a new context"] = out(V, "CtxCreate_v2", 0, 0)[0]
        say("an error: " + what, **facts)
    return ask


def full():
    """Beside a thread that is stuck in a full stream: other contexts, and the legacy stream of its own."""
    context, found = start()
    where, idle = stream(), stream()
    other = good(V, "CtxCreate_v2", 0, 0)
    their, theirs, ready_event = kernels(), stream(), event()
    answers = {}
    current(context)
    filler = thread(context, lambda: [launch(found["spin"], where, HELD)] + [launch(found["spin"], where, 1000) for _ in range(1030)])
    time.sleep(0.6)

    def ask(name, whose, act):
        def run():
            began = time.monotonic()
            rc = act()
            answers[name] = [rc, round((time.monotonic() - began) * 1e3, 1)]
        thread(whose, run).join(0.2)

    for name, act in {
        "query": lambda: call("StreamQuery", theirs), "record": lambda: call("EventRecord", ready_event, theirs), "launch": lambda: launch(their["spin"], theirs, 1000),
        "synchronize": lambda: call("CtxSynchronize"), "alloc": lambda: out(U, "MemAlloc_v2", S(MIB))[0], "stream": lambda: out(V, "StreamCreate", 1)[0],
        "event": lambda: out(V, "EventCreate", 2)[0],
    }.items():
        ask("another context: " + name, other, act)
    ask("version of the context", context, lambda: call("CtxGetApiVersion", None, c.byref(c.c_uint())))
    ask("legacy stream: query", context, lambda: call("StreamQuery", LEGACY))
    ask("another stream: query", context, lambda: call("StreamQuery", idle))
    ask("stream", context, lambda: out(V, "StreamCreate", 1)[0])
    filler.join()
    time.sleep(0.3)
    say("beside a thread stuck in a full stream for 1.4 s more: answer, ms", seen=answers)
    captured = stream()
    current(context)
    must(call("StreamBeginCapture_v2", captured, 0))
    rc = call("CtxGetApiVersion", None, c.byref(c.c_uint()))
    say("the version of the context, asked by who captures", answer=rc, end=call("StreamEndCapture", captured, c.byref(V())))


# Two cards


def pair():
    must(call("Init", 0))
    made = []
    for card in (0, 1):
        context = good(V, "DevicePrimaryCtxRetain", card)
        current(context)
        found, plain = kernels(), memory(4 * MIB)
        must(call("MemsetD32_v2", plain, 0x1110 + card, S(MIB)))
        must(call("CtxSynchronize"))
        made.append((context, found, plain))
    return made


def first(context, plain):
    current(context)
    word = c.c_uint()
    rc = call("MemcpyDtoH_v2", c.byref(word), plain, S(4))
    return rc or hex(word.value)


def across():
    (zero, found, ours), (one, _, theirs) = pair()
    current(zero)
    facts = {"peers": good(c.c_int, "DeviceCanAccessPeer", 0, 1).value}
    where = stream()
    for name, act in {
        "copy": lambda: call("MemcpyDtoDAsync_v2", theirs, ours, S(MIB), where), "copy of any kind": lambda: call("MemcpyAsync", theirs, ours, S(MIB), where),
        "peer form": lambda: call("MemcpyPeerAsync", theirs, one, ours, zero, S(MIB), where),
        "memset": lambda: call("MemsetD32Async", theirs, 7, S(16), where),
    }.items():
        current(one)
        must(call("MemsetD32_v2", theirs, 0x1111, S(MIB)))
        must(call("CtxSynchronize"))
        current(zero)
        must(call("StreamBeginCapture_v2", where, 2))
        rc = act()
        graph = V()
        rc_end = call("StreamEndCapture", where, c.byref(graph))
        if rc or rc_end:
            facts[name] = [rc, rc_end]
            continue
        rc_ready, run = ready(graph)
        facts[name] = [rc, rc_end, rc_ready, call("GraphLaunch", run, where) if not rc_ready else None, call("StreamSynchronize", where), first(one, theirs)]
        current(zero)
    say("captured between two cards without peer access: call, end, instantiation, launch, synchronize, value", **facts)
    current(zero)
    facts = {"launch": launch(found["fill"], None, theirs.value, 1, 77), "synchronize": call("CtxSynchronize")}
    facts["value"], facts["the other card"] = first(one, theirs), (current(one), call("CtxSynchronize"))[1]
    say("a kernel that writes plain memory of another card without peer access", **facts)


def copy_words(to, frm):
    words = [0, 0, 0, 0, 2, 0, frm.value, 0, 0, 1 << 16, 1, 0, 0, 0, 0, 2, 0, to.value, 0, 0, 1 << 16, 1, 65536, 1, 1]
    return (U * len(words))(*words)


def nodes():
    """Copies inside of one card as nodes of a graph: with which context are they made, and what becomes of it."""
    (zero, _, ours), (one, _, theirs) = pair()
    facts = {}
    for name, (made_with, now, at, other) in {
        "the owner's context": (zero, zero, ours, theirs), "another card's context": (one, zero, ours, theirs), "none, the owner's current": (None, zero, ours, theirs),
        "none, another card's current": (None, one, ours, theirs),
    }.items():
        current(now)
        graph = good(V, "GraphCreate", 0)
        rc, made = out(V, "GraphAddMemcpyNode", graph, None, S(0), copy_words(U(at.value + MIB), at), made_with)
        facts[name] = [rc]
        if rc:
            continue
        rc_ready, run = ready(graph)
        where = stream()
        facts[name] += [rc_ready] + ([call("GraphLaunch", run, where), call("StreamSynchronize", where), first(zero, U(at.value + MIB))] if not rc_ready else [])
        current(one)
        rc = call("GraphMemcpyNodeSetParams", made, copy_words(U(other.value + MIB), other))
        facts[name].append({"moved to the other card's memory": rc})
        if rc == 0:
            rc_again, run = ready(graph)
            where = stream()
            must(call("MemsetD32_v2", U(other.value + MIB), 5, S(16)))
            must(call("CtxSynchronize"))
            facts[name][-1]["then"] = [rc_again] + ([call("GraphLaunch", run, where), call("StreamSynchronize", where), first(one, U(other.value + MIB))] if not rc_again else [])
    say("copy nodes on two cards: added, instantiated, launched, synchronize, value", **facts)


def waits():
    (zero, found, _), (one, others, _) = pair()
    current(zero)
    mine = [memory() for _ in range(3)]
    second = good(V, "CtxCreate_v2", 0, 0)
    must(launch(kernels()["spin"], None, 1000))
    must(call("CtxSynchronize"))
    current(one)
    must(launch(others["spin"], stream(), HELD))
    current(zero)
    facts = {"free": timed(lambda: call("MemFree_v2", mine.pop())), "free of host memory": timed(lambda: call("MemFreeHost", good(V, "MemHostAlloc", S(4096), 0))),
             "module": timed(lambda: out(V, "ModuleLoadData", PTX.encode())[0]), "end of another context of this card": timed(lambda: call("CtxDestroy_v2", second)),
             "portable host memory": timed(lambda: call("MemFreeHost", good(V, "MemHostAlloc", S(4096), 1))), "synchronize": timed(lambda: call("CtxSynchronize")),
             "reset": timed(lambda: call("DevicePrimaryCtxReset_v2", 0))}
    current(one)
    facts["the kernel still runs"] = call("CtxSynchronize") == 0 and facts["reset"][1] < 1000
    say("beside a kernel of 2 s on another card: answer, ms", seen=facts)


ONE = {"arrays": arrays, "graph_memory": graph_memory, "pools": pools, "green": green, "gone": gone, "end_of_all": end_of_all, "full": full,
       **{what: error(what) for what in MORE}}
TWO = {"broken_apart": broken_apart, "across": across, "nodes": nodes, "waits": waits}


def main():
    if sys.argv[1:2] == ["--one"]:
        return {**ONE, **TWO}[sys.argv[2]]()
    must(call("Init", 0))
    asked = sys.argv[1:] or [*ONE, *(TWO if good(c.c_int, "DeviceGetCount").value > 1 else [])]
    for name in asked:
        try:
            done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=40)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                say("no answer", to=name, status=done.returncode, error=done.stderr[-400:])
        except subprocess.TimeoutExpired as error:
            say("no answer", to=name, error="not within 40 s", said=(error.stderr or b"")[-300:].decode())


if __name__ == "__main__":
    main()
