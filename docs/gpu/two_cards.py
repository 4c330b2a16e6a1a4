#!/usr/bin/env python3
"""Asks a driver what becomes of mapped memory between two cards without peer access, and after the end of its context.
Needs Python, libcuda and (for the first half) two cards. Each question has a process of its own; one JSON object a line."""
import ctypes as c
import json
import os
import sys
import threading
import time

L = c.CDLL("libcuda.so.1")
U, R, P, B = c.c_uint64, c.byref, c.c_void_p, 4 << 20


def call(name, *v):
    return getattr(L, "cu" + name)(*[U(x) if isinstance(x, int) else x for x in v])


def out(name, *v):
    o = U()
    rc = call(name, R(o), *v)
    return o.value if rc == 0 else -rc


def context(card):
    x = out("DevicePrimaryCtxRetain", card)
    call("CtxSetCurrent", x)
    return x


def mapped(card, n=B):
    h = out("MemCreate", n, R((c.c_int * 8)(1, 0, 1, card)), 0)
    at = out("MemAddressReserve", n, 0, 0, 0)
    return at, call("MemMap", at, n, 0, h, 0) or grant(at, card, n), h


def grant(at, card, n=B):
    return call("MemSetAccess", at, n, R((c.c_int * 3)(1, card, 3)), 1)


def word(at):
    o = c.c_uint()
    rc = call("MemcpyDtoH_v2", R(o), at, 4)
    return rc or hex(o.value)


def peer3(to, to_ctx, kind, frm, frm_ctx, stream):
    end = lambda k, a, x: [0, 0, 0, 0, k, a if k == 1 else 0, a if k == 2 else 0, 0, x, B, 1]
    v = end(kind, frm, frm_ctx) + end(2, to, to_ctx) + [B, 1, 1]
    return call("Memcpy3DPeerAsync", R((U * len(v))(*v)), stream)


def flat(to, frm):
    v = [0, 0, 2, 0, frm, 0, B, 0, 0, 2, 0, to, 0, B, B, 1]
    return call("Memcpy2D_v2", R((U * len(v))(*v)))


def two(question):
    x = [context(0), context(1)]
    where = 1 if question[-1] == "1" else 0
    m = [mapped(0)[0], mapped(1)[0]]
    p = []
    for card in (0, 1):
        call("CtxSetCurrent", x[card])
        p.append(out("MemAlloc_v2", B))
        for at in (m[card], p[card]):
            call("MemsetD32_v2", at, 0x1110 + card, B // 4)
        call("CtxSynchronize")
    call("CtxSetCurrent", x[where])
    s = out("StreamCreate", 1)
    host = P(out("MemHostAlloc", B, 1))
    c.memset(host, 0x22, B)
    q = question.rstrip("01")
    to = m[1]
    if q == "can":
        return dict(can=out("DeviceCanAccessPeer", 0, 1), grant=grant(m[1], 0), after=call("MemcpyDtoD_v2", m[1], m[0], B), sync=call("CtxSynchronize"), value=word(m[1]))
    if q == "graph_memset":
        g, n = out("GraphCreate", 0), U()
        v = (U * 5)(m[1], B, 7 | 4 << 32, B // 4, 1)
        rc = call("GraphAddMemsetNode", R(n), g, None, 0, R(v), x[1])
        e = out("GraphInstantiateWithFlags", g, 0)
        rc = [rc, call("GraphLaunch", e, s)]
    elif q == "graph_peer":
        call("StreamBeginCapture_v2", s, 2)
        rc = call("MemcpyPeerAsync", m[1], x[1], m[0], x[0], B, s)
        e = out("GraphInstantiateWithFlags", end(s), 0)
        rc = [rc, call("GraphLaunch", e, s)]
    elif q == "plain":
        to, rc = p[1], call("MemcpyDtoDAsync_v2", p[1], p[0], B, s)
    elif q == "plain_memset":
        to, rc = p[1], call("MemsetD32Async", p[1], 7, B // 4, s)
    else:
        rc = {
            "dtod": lambda: call("MemcpyDtoD_v2", m[1], m[0], B),
            "dtod_async": lambda: call("MemcpyDtoDAsync_v2", m[1], m[0], B, s),
            "any_async": lambda: call("MemcpyAsync", m[1], m[0], B, s),
            "peer": lambda: call("MemcpyPeer", m[1], x[1], m[0], x[0], B),
            "peer_async": lambda: call("MemcpyPeerAsync", m[1], x[1], m[0], x[0], B, s),
            "peer_swapped": lambda: call("MemcpyPeerAsync", m[1], x[0], m[0], x[0], B, s),
            "peer3": lambda: peer3(m[1], x[1], 2, m[0], x[0], s),
            "peer3_host": lambda: peer3(m[1], x[1], 1, host.value, 0, s),
            "htod": lambda: call("MemcpyHtoD_v2", m[1], host, B),
            "htod_async": lambda: call("MemcpyHtoDAsync_v2", m[1], host, B, s),
            "dtoh": lambda: [call("MemcpyDtoH_v2", host, m[1], B), hex(c.c_uint.from_address(host.value).value)],
            "memset": lambda: call("MemsetD32_v2", m[1], 7, B // 4),
            "memset_async": lambda: call("MemsetD32Async", m[1], 7, B // 4, s),
            "flat": lambda: flat(m[1], m[0]),
        }[q]()
    sync = call("CtxSynchronize")
    call("CtxSetCurrent", x[1])
    return dict(rc=rc, sync=sync, value=word(to))


def end(s):
    g = U()
    call("StreamEndCapture", s, R(g))
    return g.value


def room():
    f, t = U(), U()
    return call("MemGetInfo_v2", R(f), R(t)) or f.value >> 20


def one(question):
    x = context(0)
    n = 1 << 30
    if question in ("reset", "release", "destroy", "broken"):
        if question == "destroy":
            x = out("CtxCreate_v2", 0, 0)
        before = room()
        at, rc, h = mapped(0, n)
        call("MemsetD32_v2", at, 0x77, n // 4)
        call("CtxSynchronize")
        held = room()
        said = {}
        if question == "broken":
            lost = out("MemAddressReserve", B, 0, 0, 0)
            call("MemMap", lost, B, 0, out("MemCreate", B, R((c.c_int * 8)(1, 0, 1, 0)), 0), 0)
            said["wrong"] = [call("MemsetD32_v2", lost, 1, 4), call("CtxSynchronize")]
            at2, rc2, h2 = mapped(0, B)
            said["broken"] = [rc2, call("MemUnmap", at2, B), call("MemRelease", h2)]
        end_rc = call("CtxDestroy_v2", x) if question == "destroy" else call("DevicePrimaryCtxRelease_v2", 0) if question == "release" else call("DevicePrimaryCtxReset_v2", 0)
        if question in ("reset", "broken"):
            context(0)
            said.update(again=room(), word=word(at))
        said.update(end=end_rc, unmap=call("MemUnmap", at, n), release=call("MemRelease", h), unreserve=call("MemAddressFree", at, n))
        if question != "reset":
            context(0)
        return dict(before=before, held=held, after=room(), works=mapped(0)[1], **said)
    if question == "free":
        s, host, flag = out("StreamCreate", 1), P(out("MemHostAlloc", 4096, 3)), U()
        call("MemHostGetDevicePointer_v2", R(flag), host, 0)
        at, _, _ = mapped(0)
        plain = out("MemAlloc_v2", B)
        rc = {}
        for name, what in (("mapped", at), ("mapped_inside", at + 4096), ("nothing", 0x123456000), ("host", host.value), ("zero", None)):
            c.memset(host, 0, 4)
            call("StreamWaitValue32_v2", s, flag.value, c.c_uint(1), 0)
            threading.Timer(0.5, lambda: c.memset(host, 1, 4)).start()
            t = time.time()
            code = call("MemAlloc_v2", R(U()), 0) if what is None else call("MemFree_v2", what)
            rc[name] = [code, round(time.time() - t, 4)]
            call("CtxSynchronize")
        call("CtxSetCurrent", None)
        rc["no context"] = [call("MemFree_v2", plain), call("MemFree_v2", at), call("MemFree_v2", 0), call("MemAlloc_v2", R(U()), 0)]
        return rc
    if question == "capture":
        s = out("StreamCreate", 1)
        at, _, _ = mapped(0)
        said = {}
        for mode in (0, 2):
            call("StreamBeginCapture_v2", s, 0)
            v = c.c_int(mode)
            call("ThreadExchangeStreamCaptureMode", R(v))
            said[str(mode)] = [call("MemFree_v2", at), call("MemAlloc_v2", R(U()), 0), call("MemsetD32Async", at, 1, 4, s)]
            call("ThreadExchangeStreamCaptureMode", R(v))
            said[str(mode)].append(call("StreamEndCapture", s, R(U())))
        return said
    if question == "pieces":
        import mmap
        size = 64 << 20
        m = mmap.mmap(-1, 2 * size)
        host = c.addressof(c.c_char.from_buffer(m))
        said = dict(register=[call("MemHostRegister_v2", P(host + i * size), size, 1) for i in (0, 1)])
        at, _, _ = mapped(0, 2 * size)
        s = out("StreamCreate", 1)
        for name, off in (("within", 0), ("across", size // 2)):
            for what, args in (("DtoH", (P(host + off), at)), ("HtoD", (at, P(host + off)))):
                t = time.time()
                rc = call("Memcpy%sAsync_v2" % what, *args, size, s)
                submit = time.time() - t
                sync = call("StreamSynchronize", s)
                said[name + what] = [rc, sync, round(submit * 1e3, 2), round((time.time() - t) * 1e3, 2)]
        return said
    if question == "access":
        plain, flags = out("MemAlloc_v2", B), U()
        return dict(access=call("MemGetAccess", R(flags), R((c.c_int * 2)(1, 0)), plain), retain=call("MemRetainAllocationHandle", R(U()), plain),
                    range=[call("MemRangeGetAttribute", R(c.c_int()), 4, i, plain, 4096) for i in (1, 3, 4)], advise=call("MemAdvise", plain, 4096, 1, 0),
                    prefetch=call("MemPrefetchAsync", plain, 4096, 0, 0), attach=call("StreamAttachMemAsync", out("StreamCreate", 1), plain, 0, 1),
                    flags=call("MemHostGetFlags", R(c.c_uint()), P(plain)), pointer=call("MemHostGetDevicePointer_v2", R(U()), P(plain), 0),
                    register=call("MemHostRegister_v2", P(plain), B, 0), unregister=call("MemHostUnregister", P(plain)), freehost=call("MemFreeHost", P(plain)),
                    mapping=[call("MemUnmap", plain, 2 << 20), call("MemAddressFree", plain, B), grant(plain, 0), call("MemMap", plain, 2 << 20, 0, out("MemCreate", 2 << 20, R((c.c_int * 8)(1, 0, 1, 0)), 0), 0)],
                    attributes=[[i, call("PointerGetAttribute", R(c.create_string_buffer(128)), i, plain)] for i in range(1, 23)],
                    mapped=[[i, call("PointerGetAttribute", R(c.create_string_buffer(128)), i, mapped(0)[0])] for i in range(1, 23)],
                    pool=call("MemPoolExportPointer", c.create_string_buffer(64), plain), info=call("MemGetLocationInfo", R(U()), plain) if hasattr(L, "cuMemGetLocationInfo") else None)


ONE = "reset release destroy broken free capture pieces access".split()
TWO = "can dtod0 dtod1 dtod_async0 dtod_async1 any_async0 peer0 peer_async0 peer_async1 peer_swapped0 peer30 peer3_host0 htod0 htod_async0 dtoh0 memset0 memset_async0 flat0 plain0 plain_memset0 graph_memset0 graph_peer0".split()
if len(sys.argv) > 1:
    call("Init", 0)
    print(json.dumps({"what": sys.argv[1], **(two if sys.argv[1] in TWO else one)(sys.argv[1])}), flush=True)
    os._exit(0)
call("Init", 0)
count = out("DeviceGetCount") & 0xffffffff
for question in ONE + (TWO if count > 1 else []):
    if os.system(f"timeout 40 {sys.executable} {sys.argv[0]} {question}"):
        print(json.dumps({"what": question, "error": "it did not end well"}), flush=True)
