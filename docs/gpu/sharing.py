#!/usr/bin/env python3
"""Asks a driver about what processes share: handles of memory and events, descriptors of physical memory and of pools. One JSON
object a line, each question with two processes of its own: O owns, P opens; half a minute, and 200 MiB of the card. Needs Python 3.9,
Linux 5.6 and libcuda. On the simulator too.

    python3 docs/gpu/sharing.py [NAME...]
"""
import ctypes as c
import json
import os
import subprocess
import sys
import threading
import time

from execution import MIB, S, U, V, call, capturing, end, good, launch, libc, memory, must, out, say, start, stream, timed

LAZY = 1
HELD = 1_000_000_000  # nanoseconds
FOR_EVER = 3600 * HELD


class Handle(c.Structure):
    """CUipcMemHandle and its like: they are passed by value."""

    _fields_ = [("bytes", c.c_ubyte * 64)]

    @staticmethod
    def of(text):
        return Handle.from_buffer_copy(bytes.fromhex(text))


class Pool(c.Structure):
    _fields_ = [("kind", c.c_int), ("handles", c.c_int), ("place", c.c_int), ("device", c.c_int), ("rest", U * 9)]


# What O is told to do, and P does itself.


def plain(answer):
    return [answer[0], answer[1].value]


def made(size=4 * MIB, value=7):
    at = memory(size)
    must(call("MemsetD8_v2", at, c.c_ubyte(value), S(size)))
    must(call("CtxSynchronize"))
    return at.value


def given(name, of):
    """What a call answers that gives a handle, and the handle."""
    handle = Handle()
    rc = call(name, c.byref(handle), U(of))
    return [rc, bytes(handle.bytes).hex()]


def opened(text, flags=LAZY):
    at = U()
    return call("IpcOpenMemHandle_v2", c.byref(at), Handle.of(text), flags), at.value


def closed(at):
    return call("IpcCloseMemHandle", U(at))


def freed(at):
    return call("MemFree_v2", U(at))


def byte(at):
    got = c.c_ubyte()
    return [call("MemcpyDtoH_v2", c.byref(got), U(at), S(1)), got.value]


def free():
    left = S()
    must(call("MemGetInfo_v2", c.byref(left), c.byref(S())))
    return left.value >> 20


def shared_event(flags=6):
    return good(V, "EventCreate", flags).value


def opened_event(text):
    made = V()
    return call("IpcOpenEventHandle", c.byref(made), Handle.of(text)), made.value


def on(name, one):
    return call("Event" + name, *((V(one), None) if name == "Record" else (V(one),)))


def spin(nanoseconds=HELD, where=None):
    return launch(KERNELS["spin"], where, nanoseconds)


def pool(handles=1):
    return good(V, "MemPoolCreate", c.byref(Pool(1, handles, 1, 0))).value


def piece(of, size=MIB, value=3):
    at = good(U, "MemAllocFromPoolAsync", S(size), V(of), None)
    must(call("MemsetD8_v2", at, c.c_ubyte(value), S(size)))
    must(call("CtxSynchronize"))
    return at.value


def exported_pool(of):
    return plain(out(c.c_int, "MemPoolExportToShareableHandle", V(of), 1, U(0)))


def imported_pool(descriptor):
    return out(V, "MemPoolImportFromShareableHandle", V(descriptor), 1, U(0))


def imported_piece(of, text):
    at = U()
    return call("MemPoolImportPointer", c.byref(at), of, c.byref(Handle.of(text))), at.value


def physical(handles=1):
    return good(U, "MemCreate", S(2 * MIB), c.byref((c.c_int * 8)(1, handles, 1, 0)), U(0)).value


def exported(handle):
    return plain(out(c.c_int, "MemExportToShareableHandle", U(handle), 1, U(0)))


def imported(descriptor):
    return out(U, "MemImportFromShareableHandle", V(descriptor), 1)


def mapped(handle):
    at = good(U, "MemAddressReserve", S(2 * MIB), S(0), U(0), U(0)).value
    must(call("MemMap", U(at), S(2 * MIB), S(0), U(handle), U(0)))
    must(call("MemSetAccess", U(at), S(2 * MIB), c.byref((c.c_int * 3)(1, 0, 3)), S(1)))
    return at


def unmapped(at, handle):
    return call("MemUnmap", U(at), S(2 * MIB)), call("MemRelease", U(handle))


class Other:
    """O: a process that evaluates what it is told."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__, "--owner"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert json.loads(self.process.stdout.readline()) == "ready"

    def __call__(self, text):
        print(text, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def descriptor(self, number):
        got = libc.syscall(438, os.pidfd_open(self.process.pid), number, 0)  # pidfd_getfd
        assert got >= 0, number
        return got

    def end(self, kill=False):
        if kill:
            self.process.kill()
        else:
            self.process.stdin.close()
        self.process.wait()


def obey():
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(eval(line)), flush=True)  # Of this file, and nobody else's.


def late(act, limit=5):
    """What it answers and after how many ms; or that it does not."""
    got, context = ["hangs"], good(V, "CtxGetCurrent")

    def run():
        must(call("CtxSetCurrent", context))
        got[0] = timed(act)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    return got[0]


# Questions


def handles(o):
    at = o("made()")
    rc, text = o(f"given('IpcGetMemHandle', {at})")
    small = [o("made(1000)") for _ in range(2)]
    texts = [o(f"given('IpcGetMemHandle', {one})")[1] for one in small]
    (_, one), (_, two) = map(opened, texts)
    start, size = U(), S()
    must(call("MemGetAddressRange_v2", c.byref(start), c.byref(size), U(one + 7)))
    facts = {"get": rc, "again": o(f"given('IpcGetMemHandle', {at})")[1] == text, "inside": o(f"given('IpcGetMemHandle', {at} + 4096)") == [0, text],
             "owner": o(f"opened('{text}')")[0], "flags 0": opened(text, 0)[0], "nothing": opened("00" * 64)[0], "apart as at home": two - one == small[1] - small[0],
             "range": [start.value == one, size.value], "of an opened one": given("IpcGetMemHandle", one)[0], "closed by its owner": o(f"closed({at})")}
    (_, ours), before = opened(text), free()
    facts["twice"] = opened(text) == (0, ours)
    facts["free, close inside, close, close, close"] = [freed(ours), closed(ours + 512), closed(ours), closed(ours), closed(ours)]
    say("handles of memory", **facts, of=o("[given('IpcGetMemHandle', at)[0] for at in (piece(pool()), good(U, 'MemAllocManaged', S(4096), 1).value, mapped(physical()), 0)]"))
    must(call("CtxSetCurrent", None))
    say("without a context", open=opened(text)[0], close=closed(one))


def ends(o):
    o("made(1000)")  # So that the small one's block stays.
    texts, at = {}, {}
    for name, size in ("large", 5 * MIB), ("small", 1000):
        at[name] = o(f"made({size})")
        texts[name] = o(f"given('IpcGetMemHandle', {at[name]})")[1]
    ours = {name: opened(text)[1] for name, text in texts.items()}
    before = free()
    facts = {"freed": [o(f"freed({one})") for one in at.values()], "seen": [byte(one) for one in ours.values()], "open once more": [opened(text)[0] for text in texts.values()]}
    again = o("made(1000, 9)")
    facts["a new one at the same address"] = again == at["small"], opened(o(f"given('IpcGetMemHandle', {again})")[1])[0]
    facts["closed"] = [closed(one) for one in (*ours.values(), *ours.values())]
    facts["came back"], facts["opened then"] = free() - before, [opened(text)[0] for text in texts.values()]
    say("memory that is freed while it is open", **facts)
    at = o("made()")
    text = o(f"given('IpcGetMemHandle', {at})")[1]
    _, ours = opened(text)
    o.end(kill=True)
    time.sleep(0.5)
    say("and whose owner is killed", seen=byte(ours), again=opened(text)[0], close=[closed(ours), closed(ours)], then=opened(text)[0])


def contexts(o):
    texts = [o(f"given('IpcGetMemHandle', {o('made()')})")[1] for _ in range(2)]
    _, ours = opened(texts[0])
    first = good(V, "CtxGetCurrent")
    second = good(V, "CtxCreate_v2", 0, 0)
    facts = {"in a second context": opened(texts[0])[0], "another handle": opened(texts[1])[0], "seen there": byte(ours), "closed there": closed(ours)}
    must(call("CtxSetCurrent", first))
    facts["closed in the first"] = closed(ours)
    must(call("CtxSetCurrent", second))
    facts["then in the second"], ours = opened(texts[0])
    facts["end of the second"] = call("CtxDestroy_v2", second)
    must(call("CtxSetCurrent", first))
    say("contexts of one process", **facts, seen=byte(ours))


def waits(o):
    text = o(f"given('IpcGetMemHandle', {o('made()')})")[1]
    _, ours = opened(text)
    must(spin(HELD, stream()))
    facts = {"open": timed(lambda: opened(o(f"given('IpcGetMemHandle', {o('made()')})")[1])[0]), "close": timed(lambda: closed(ours))}
    must(call("CtxSynchronize"))
    where = stream()
    other = threading.Thread(target=lambda: must(call("StreamBeginCapture_v2", where, 0)))
    other.start()
    other.join()
    facts["beside a capture in global mode: open, its state"] = opened(text)[0], capturing(where)
    say("what open and close wait for: answer, ms", **facts)


def events(o):
    one = o("shared_event()")
    rc, text = o(f"given('IpcGetEventHandle', {one})")
    rc_open, ours = opened_event(text)
    facts = {"get": rc, "open": rc_open, "twice": opened_event(text)[0], "owner": o(f"opened_event('{text}')")[0], "of one without the flag": o("given('IpcGetEventHandle', shared_event(2))")[0],
             "the flag alone": o("out(V, 'EventCreate', 4)[0]"), "of an opened one": given("IpcGetEventHandle", ours)[0], "nothing": opened_event("00" * 64)[0], "before any record": on("Query", ours)}
    must(o(f"spin() or on('Record', {one})"))
    facts["query beside O's kernel"], facts["synchronize"], facts["query then"] = on("Query", ours), late(lambda: on("Synchronize", ours)), on("Query", ours)
    must(spin() or on("Record", ours))
    facts["O's query beside P's kernel"] = o(f"on('Query', {one})")
    must(call("CtxSynchronize"))
    must(o(f"spin() or on('Record', {one})"))
    must(spin(HELD // 4) or on("Record", ours))
    facts["P recorded after O, and is over"] = on("Synchronize", ours), on("Query", ours), o(f"on('Query', {one})")
    must(o("call('CtxSynchronize')"))
    where = stream()
    must(call("StreamBeginCapture_v2", where, 2))
    facts["recorded in a capture"] = call("EventRecord", V(ours), where), capturing(where), end(where)
    say("events", **facts)
    must(o(f"spin() or on('Record', {one})"))
    say("an event that its owner destroyed", destroyed=o(f"on('Destroy_v2', {one})"), query=on("Query", ours), record=on("Record", ours), synchronize=late(lambda: on("Synchronize", ours)), open=opened_event(text)[0])


def killed(o):
    one = o("shared_event()")
    _, ours = opened_event(o(f"given('IpcGetEventHandle', {one})")[1])
    must(o(f"spin({FOR_EVER}) or on('Record', {one})"))
    before = on("Query", ours)
    where = stream()
    must(call("StreamWaitEvent", where, V(ours), 0))
    o.end(kill=True)
    say("an event whose recorder is killed", before=before, synchronize=late(lambda: on("Synchronize", ours)), stream=late(lambda: call("StreamSynchronize", where)))


def pools(o):
    theirs, other, closed_one = o("[pool(), pool(), pool(0)]")
    at = o(f"piece({theirs})")
    facts = {"of a piece before the pool": o(f"given('MemPoolExportPointer', {at})")[0], "inside": o(f"given('MemPoolExportPointer', {at} + 512)")[0],
             "of a pool that is not to be": o(f"given('MemPoolExportPointer', piece({closed_one}))")[0], "such a pool": o(f"exported_pool({closed_one})")[0],
             "the default": o("exported_pool(good(V, 'DeviceGetDefaultMemPool', 0).value)")[0]}
    facts["export"], number = o(f"exported_pool({theirs})")
    facts["of a piece after the pool"], text = o(f"given('MemPoolExportPointer', {at})")
    facts["import"], ours = imported_pool(o.descriptor(number))
    _, wrong = imported_pool(o.descriptor(o(f"exported_pool({other})")[1]))
    facts["a piece of another pool"], facts["nothing"] = imported_piece(wrong, text)[0], imported_piece(ours, "00" * 64)[0]
    facts["in the owner's process: pool, piece"] = o(f"(lambda pool: [pool[0], imported_piece(pool[1], '{text}')[0]])(imported_pool({number}))")
    facts["piece"], mine = imported_piece(ours, text)
    facts["again"] = imported_piece(ours, text) == (0, mine)
    facts["allocate"], facts["choose"] = out(U, "MemAllocFromPoolAsync", S(4096), ours, None)[0], call("DeviceSetMemPool", 0, ours)
    facts["imported pool exported"], facts["piece exported"] = exported_pool(ours.value)[0], given("MemPoolExportPointer", mine)[0]
    facts["free"] = call("MemFreeAsync", U(mine), None), call("CtxSynchronize")
    facts["then"] = out(c.c_int, "PointerGetAttribute", 2, U(mine))[0]  # A second free could take away what is not ours.
    facts["imported once more"], mine = imported_piece(ours, text)
    facts["freed by O first, seen"] = o(f"call('MemFreeAsync', U({at}), None) or call('CtxSynchronize')"), byte(mine)
    facts["imported then"] = imported_piece(ours, text)[0]
    facts["free, pools destroyed"] = freed(mine), o(f"call('MemPoolDestroy', V({theirs}))"), call("MemPoolDestroy", ours)
    say("pools", **facts)


def descriptors(o):
    before = free()
    handle, number = o("(lambda handle: [handle, exported(handle)[1]])(physical())")
    must(o(f"(lambda at: call('MemsetD8_v2', U(at), c.c_ubyte(5), S({2 * MIB})) or call('CtxSynchronize') or unmapped(at, {handle})[0])(mapped({handle}))"))
    here = o.descriptor(number)
    (rc, one), (_, two) = imported(here), imported(here)
    properties = (c.c_int * 8)()
    must(call("MemGetAllocationPropertiesFromHandle", c.byref(properties), one))
    facts = {"import": rc, "again, another value": one.value != two.value, "properties": list(properties)[:4], "exported again": exported(one.value)[0],
             "the same in O": o(f"imported({number})[0]"), "of a handle without the type": o("exported(physical(0))")[0]}
    o.end(kill=True)
    os.close(here)
    at = [mapped(one.value), mapped(two.value)]
    facts["seen"] = [byte(place) for place in at]
    facts["ends"], facts["card, MiB"] = [unmapped(at[0], one.value), unmapped(at[1], two.value)], before - free()
    say("descriptors of physical memory", **facts)


ALL = {"handles": handles, "ends": ends, "contexts": contexts, "waits": waits, "events": events, "killed": killed, "pools": pools, "descriptors": descriptors}


def main():
    global KERNELS
    if sys.argv[1:2] == ["--owner"]:
        _, KERNELS = start()
        return obey()
    if sys.argv[1:2] == ["--one"]:
        _, KERNELS = start()
        other = Other()
        try:
            ALL[sys.argv[2]](other)
        finally:
            other.end(kill=True)
        sys.stdout.flush()
        os._exit(0)  # Whatever still waits.
    for name in sys.argv[1:] or ALL:
        try:
            done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=40)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                say("no answer", to=name, status=done.returncode, error=done.stderr[-800:])
        except subprocess.TimeoutExpired as error:
            say("no answer", to=name, error="not within 40 s", said=(error.stderr or b"")[-300:].decode())


if __name__ == "__main__":
    main()
