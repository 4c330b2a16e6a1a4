"""What an allocation costs by the size of its pieces: plain, and mapped in pieces of 64 MiB, 256 MiB or one, with access set and the
addresses unmapped piece by piece or at once. Medians of 40, in microseconds."""
import ctypes as C
import time

MIB = 1 << 20
Size, U64 = C.c_size_t, C.c_uint64


class Properties(C.Structure):
    _fields_ = [("type", C.c_int), ("handle_types", C.c_int), ("location", C.c_int), ("device", C.c_int),
                ("windows", C.c_void_p), ("flags", C.c_ubyte * 8)]


class Access(C.Structure):
    _fields_ = [("location", C.c_int), ("device", C.c_int), ("flags", C.c_int)]


cuda = C.CDLL("libcuda.so.1")
properties = Properties(1, 1, 1, 0, None)
properties.flags[1] = 1
access = Access(1, 0, 3)


def call(name, *arguments):
    error = getattr(cuda, name)(*arguments)
    assert error == 0, f"{name}: {error}"


def plain(size):
    at, begin = U64(), time.perf_counter()
    call("cuMemAlloc_v2", C.byref(at), Size(size))
    made = time.perf_counter()
    call("cuMemFree_v2", at)
    return made - begin, time.perf_counter() - made


def mapped(size, piece, access_at_once, unmap_at_once):
    start, handles, begin = U64(), [], time.perf_counter()
    call("cuMemAddressReserve", C.byref(start), Size(size), Size(2 * MIB), U64(0), U64(0))
    for offset in range(0, size, piece):
        handle, at = U64(), U64(start.value + offset)
        call("cuMemCreate", C.byref(handle), Size(piece), C.byref(properties), U64(0))
        call("cuMemMap", at, Size(piece), Size(0), handle, U64(0))
        if not access_at_once:
            call("cuMemSetAccess", at, Size(piece), C.byref(access), Size(1))
        handles.append(handle)
    if access_at_once:
        call("cuMemSetAccess", start, Size(size), C.byref(access), Size(1))
    made = time.perf_counter()
    if unmap_at_once:
        call("cuMemUnmap", start, Size(size))
    for index, handle in enumerate(handles):
        if not unmap_at_once:
            call("cuMemUnmap", U64(start.value + index * piece), Size(piece))
        call("cuMemRelease", handle)
    call("cuMemAddressFree", start, Size(size))
    return made - begin, time.perf_counter() - made


def show(what, run):
    times = [run() for _ in range(40)]
    allocated, freed, both = (sorted(t)[20] * 1e6 for t in zip(*[(a, f, a + f) for a, f in times]))
    print(f"{what}: allocated in {allocated:.0f}, freed in {freed:.0f}, both {both:.0f} us", flush=True)


call("cuInit", 0)
context = C.c_void_p()
call("cuDevicePrimaryCtxRetain", C.byref(context), 0)
call("cuCtxSetCurrent", context)
for size in (2, 20, 64, 256, 2048):
    show(f"{size} MiB plain", lambda: plain(size * MIB))
    for piece in sorted({min(size, most) for most in (64, 256, 2048)}):
        for at_once in (False, True):
            how = "at once" if at_once else "piece by piece"
            show(f"{size} MiB in pieces of {piece} MiB, {how}", lambda: mapped(size * MIB, piece * MIB, at_once, at_once))
