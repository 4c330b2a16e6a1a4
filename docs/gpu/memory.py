#!/usr/bin/env python3
"""Asks a driver what the simulator's memory assumes of it. Needs Python and libcuda; one JSON object a line."""
import ctypes as c
import json
import sys

L = c.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libcuda.so.1")
U, B, R = c.c_uint64, 2 << 20, c.byref


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def A(*v):
    return [U(x) if isinstance(x, int) else x for x in v]


def call(name, *v):
    return getattr(L, "cu" + name)(*A(*v))


def out(name, *v):
    o = U()
    return call(name, R(o), *v), o.value


def prop(kind=1, place=0, types=1):
    return R((c.c_int * 8)(1, types, kind, place))


def create(n, *p):
    return out("MemCreate", n, prop(*p), 0)


def grant(at, n, flags=3):
    return call("MemSetAccess", at, n, R((c.c_int * 3)(1, 0, flags)), 1)


def free():
    o = U()
    t = U()
    call("MemGetInfo_v2", R(o), R(t))
    return o.value


call("Init", 0)
x = c.c_void_p()
call("DevicePrimaryCtxRetain", R(x), 0)
call("CtxSetCurrent", x)
say("free of null", rc=call("MemFree_v2", 0))
va = out("MemAddressReserve", 16 * B, 0, 0, 0)[1]
say("reserve", page=out("MemAddressReserve", 4096, 0, 0, 0)[0], odd=out("MemAddressReserve", B + 4096, 0, 0, 0)[0],
    align3=out("MemAddressReserve", B, 3, 0, 0)[0], hint_taken=out("MemAddressReserve", B, 0, va, 0)[0])
say("create", half=create(B // 2)[0], none=create(0)[0], device=create(B, 1, 99)[0], host=create(B, 2, 0, 0)[0],
    numa=create(B, 3, 0, 0)[0], vast=create(1 << 42)[0])
h, g = create(2 * B)[1], create(B)[1]
say("map", part=call("MemMap", va, B, 0, h, 0), offset=call("MemMap", va, B, B, h, 0),
    more=call("MemMap", va, 3 * B, 0, h, 0), unaligned=call("MemMap", va + 4096, 2 * B, 0, h, 0))
call("MemUnmap", va, B)
say("map whole", rc=call("MemMap", va, 2 * B, 0, h, 0), again=call("MemMap", va + B, B, 0, g, 0),
    next=call("MemMap", va + 2 * B, B, 0, g, 0))
f = U(9)
say("get access", none=call("MemGetAccess", R(f), R((c.c_int * 2)(1, 0)), va), flags=f.value,
    unmapped=call("MemGetAccess", R(f), R((c.c_int * 2)(1, 0)), va + 8 * B))
say("set access", half=grant(va, B), unmapped=grant(va + 8 * B, B), gap=grant(va, 4 * B), flags2=grant(va, 2 * B, 2),
    read=grant(va, 2 * B, 1), all=grant(va, 3 * B))
buf = c.create_string_buffer(64)
say("copy across", rc=call("MemcpyDtoH_v2", buf, va + 2 * B - 32, 64))
s, n = U(), U()


def span(p):
    return call("MemGetAddressRange_v2", R(s), R(n), p), s.value - va, n.value


p, q, m = out("MemAlloc_v2", 5000)[1], out("MemHostAlloc", 4096, 0)[1], out("MemAllocManaged", 5000, 1)[1]
say("range", second=span(va + 2 * B + 5), first=span(va + 5), unmapped=span(va + 8 * B), unknown=span(4096),
    plain=(span(p + 9)[0], n.value), host=(span(q)[0], n.value), managed=(span(m)[0], n.value))
for name, at in dict(mapped=va + B, unmapped=va + 8 * B, plain=p + 8, host=q + 8, managed=m + 8, unknown=4096).items():
    got = {}
    for k in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20):
        v = U()
        rc = call("PointerGetAttribute", R(v), k, at)
        v = v.value
        got[k] = [rc] if rc else "same" if v == at else "va" if v == va else "base" if v in (p, q, m) else v
    say("attributes", of=name, got=got)
w = (U * 2)(9, 9)
say("attributes together", rc=call("PointerGetAttributes", 2, R((c.c_int * 2)(2, 11)),
    R((c.c_void_p * 2)(c.addressof(w), c.addressof(w) + 8)), 4096), got=list(w))
say("unmap", part=call("MemUnmap", va, B), free=call("MemAddressFree", va, 16 * B), two=call("MemUnmap", va, 3 * B))
d = c.c_int()
rc = call("MemExportToShareableHandle", R(d), g, 1, 0)
i = out("MemImportFromShareableHandle", d.value, 1)
k = create(B, 1, 0, 0)[1]
say("export", rc=rc, imported=i[0], same=i[1] == g, not_asked=call("MemExportToShareableHandle", R(d), k, 1, 0))
say("free addresses", other=call("MemAddressFree", va, B), right=call("MemAddressFree", va, 16 * B))
z = [create(64 * B)[1] for _ in range(2)]
va = out("MemAddressReserve", 128 * B, 0, 0, 0)[1]
call("MemMap", va, 64 * B, 0, z[0], 0), grant(va, 64 * B), call("MemsetD8_v2", va, 0xA5, 64 * B), call("CtxSynchronize")
call("MemUnmap", va, 64 * B), call("MemRelease", z[0])
z = create(64 * B)[1]
call("MemMap", va, 64 * B, 0, z, 0), grant(va, 64 * B)
big = c.create_string_buffer(64 * B)
call("MemcpyDtoH_v2", big, va, 64 * B)
say("new memory", zero=big.raw.count(0), stale=big.raw.count(0xA5))
mine = (c.c_char * (16 * 4096))()
a = (c.addressof(mine) + 4095) & ~4095
reg = lambda at, n: call("MemHostRegister_v2", at, n, 0)
say("register", rc=reg(a, 8192), again=reg(a, 8192), overlap=reg(a + 4096, 8192), inside=call("MemHostUnregister", a + 8),
    undo=call("MemHostUnregister", a), twice=call("MemHostUnregister", a), nothing=reg(1 << 20, 4096))
f = c.c_uint()
say("host flags", rc=call("MemHostGetFlags", R(f), q), flags=f.value, free_twice=(call("MemFreeHost", q), call("MemFreeHost", q)))
say("prefetch", plain=call("MemPrefetchAsync", p, 5000, 0, 0), over=call("MemPrefetchAsync", m, 1 << 30, 0, 0))
say("free", inside=call("MemFree_v2", p + 8), right=call("MemFree_v2", p), twice=call("MemFree_v2", p))
o = free()
t = [out("MemAlloc_v2", 4096)[1] for _ in range(2000)]
say("small", used=o - free(), gaps=sorted({b - a for a, b in zip(sorted(t), sorted(t)[1:])})[:4],
    third=out("MemAllocPitch_v2", R(U()), 1000, 4, 3)[0], align=min(x & -x for x in (out("MemAlloc_v2", 1)[1] for _ in range(9))))
o = free()
e = out("MemAllocAsync", 64 * B, 0)[1]
u = o - free()
r = call("MemFreeAsync", e, 0), call("CtxSynchronize")
say("pool", used=u, after=o - free(), rc=r, again=call("MemFreeAsync", e, 0), plain_free=call("MemFree_v2", out("MemAllocAsync", B, 0)[1]))
for name, at, flags in ("unmapped", va + 80 * B, 3), ("over", va + 64 * B - 4, 3), ("no access", va, 0), ("read only", va, 1):
    say("copy to " + name, grant=grant(va, 64 * B, flags), rc=call("MemcpyHtoD_v2", at, b"12345678", 8),
        then=call("CtxSynchronize"))
call("MemRelease", k)
say("release twice", rc=call("MemRelease", k))
