#!/usr/bin/env python3
"""Looks again for the two things that were seen once on a crowded card (docs/gpu.md): wrong bytes in an application that
resets its device after each round, under forced swaps; an illegal address in threads that multiply sparse matrices, with the
library and no swap. Other processes fill the card meanwhile. Needs nvcc and PyTorch.

    run.py --library PATH/libnvshare.so [--seconds 600] [--leave GIB] [--bare]

A line for each program that ended otherwise than well, and a table at the end; status 1 if there was one."""

import argparse
import collections
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FILLER = """
import ctypes, sys, time
cu = ctypes.CDLL("libcuda.so.1"); context = ctypes.c_void_p(); cu.cuInit(0)
cu.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0); cu.cuCtxSetCurrent(context)
free, total, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
while cu.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0 and free.value > int(sys.argv[1]) + (256 << 20):
    if cu.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(min(1 << 30, free.value - int(sys.argv[1])))): break
print(free.value >> 20, "MiB left", flush=True); time.sleep(1e6)
"""


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--library", required=True)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--leave", type=float, default=7.0, help="GiB of the card that the filler leaves")
    options.add_argument("--bare", action="store_true", help="the same without the library, for comparison")
    options = options.parse_args()
    work = tempfile.mkdtemp()
    reset = f"{work}/reset"
    subprocess.run(["nvcc", "-O2", "-arch=native", "-o", reset, f"{HERE}/reset.cu"], check=True)
    filler = subprocess.Popen([sys.executable, "-c", FILLER, str(int(options.leave * (1 << 30)))], stdout=subprocess.PIPE, text=True)
    print("filled:", filler.stdout.readline().strip(), flush=True)

    library = {} if options.bare else {"LD_PRELOAD": os.path.abspath(options.library), "NVSHARE_LOG": "warn"}
    swaps = {} if options.bare else {"NVSHARE_DEBUG_SWAP_EVERY": "60ms"}
    # One process of threads, several that reset; each run is short, so that many begin and end.
    kinds = [("reset", [reset, "15", "640"], {**library, **swaps})] * 4
    kinds += [("reset, 200 ms", [reset, "15", "1200"], {**library, **({} if options.bare else {"NVSHARE_DEBUG_SWAP_EVERY": "200ms"})})]
    sparse = [sys.executable, f"{HERE}/sparse.py", "25"]
    kinds += [("sparse", sparse, library), ("sparse, uncached", sparse, {**library, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})]
    end = time.monotonic() + options.seconds
    counts = collections.defaultdict(collections.Counter)
    bad = 0
    running = [None] * len(kinds)
    while any(running) or time.monotonic() < end:
        for at, (kind, command, environment) in enumerate(kinds):
            if running[at] is None:
                if time.monotonic() < end:
                    out = tempfile.TemporaryFile("w+", dir=work)
                    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment})
                    running[at] = (process, out, time.monotonic())
                continue
            process, out, began = running[at]
            status = process.poll()
            if status is None and time.monotonic() - began > 120:
                process.send_signal(signal.SIGKILL)
                process.wait()
                status = "hangs"
            if status is None:
                continue
            out.seek(0)
            said = out.read().strip().splitlines()
            running[at] = None
            counts[kind]["runs"] += 1
            for name, number in re.findall(r"(rounds|products|wrong|out-of-memory|failed) (\d+)", said[-1] if said else ""):
                counts[kind][name] += int(number)
            if status != 0:
                # Out of memory on a full card is an answer, not a fault.
                crowded = any("out of memory" in line.lower() or "MemoryAllocation" in line for line in said)
                counts[kind]["full" if crowded else "bad"] += 1
                bad += not crowded
                print(f"{kind}: status {status}:", *said[-6:], sep="\n    ", flush=True)
        time.sleep(0.05)
    filler.kill()
    filler.wait()
    for kind, count in counts.items():
        print(f"{kind:16}", *(f"{name} {number}" for name, number in sorted(count.items())))
    print("PASS" if not bad else "FAIL")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
