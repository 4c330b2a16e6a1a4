#!/usr/bin/env python3
"""Every family of device memory, as a C program with the runtime linked statically and as frameworks of today use it, in four
ways: bare, with the library, with the library and everything out and in again every 100 ms, and all at once under an agent that
grants part of the card. Each must print what it prints bare. Needs nvcc, and what frameworks there are.

    run.py --library PATH/libnvshare.so [--agent PATH/nvshare-agent] [--capacity 16G] [--ways bare,library,...] [NAME...]

A line for each program: what it did in each way, `=` where it printed the same as bare, and how often everything came back in;
status 1 where something differs."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
FAMILIES = ["plain", "pool", "churn", "vmm", "managed", "graph", "array", "ipc"]
PYTHON = [sys.executable, f"{HERE}/frameworks.py"]
TORCH = "PYTORCH_CUDA_ALLOC_CONF"
JAX = "XLA_PYTHON_CLIENT_ALLOCATOR"
GROWS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
FRAMEWORKS = {
    "torch": ("torch_trains", {}),
    "torch, expandable": ("torch_trains", {TORCH: "expandable_segments:True"}),
    "torch, async": ("torch_trains", {TORCH: "backend:cudaMallocAsync"}),
    "torch, shared": ("torch_shared", {}),
    "torch, loader": ("torch_loads", {}),
    "torch, rmm": ("torch_rmm", {}),
    "cupy": ("cupy_default", {}),
    "cupy, async": ("cupy_async", {}),
    "cupy, managed": ("cupy_managed", {}),
    "jax": ("jax_rounds", GROWS),
    "jax, platform": ("jax_rounds", {**GROWS, JAX: "platform"}),
    "jax, cuda_async": ("jax_rounds", {**GROWS, JAX: "cuda_async"}),
    "numba, shared": ("numba_shared", {}),
    "rmm, pool": ("rmm_pool", {}),
    "rmm, async": ("rmm_async", {}),
    "rmm, managed": ("rmm_managed", {}),
}
LIMIT = 150


class Program:
    def __init__(self, name, command, environment):
        self.name, self.command, self.environment, self.said = name, command, environment, {}

    def run(self, way, environment):
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as errors:
            environment = {**os.environ, **self.environment, **environment}
            child = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            try:
                out, _ = child.communicate(timeout=LIMIT)
                status = child.returncode
            except subprocess.TimeoutExpired:
                child.kill()
                out, status = child.communicate()[0], "hangs"
            errors.seek(0)
            said = errors.read()
        result = [line for line in out.splitlines() if line.startswith("result")]
        self.said[way] = {"status": status, "result": result, "back": len(re.findall(r"everything is resident", said)), "s": time.monotonic() - began}
        if status != 0 or not result:
            lines = [line for line in (out + said).splitlines() if "everything is resident" not in line and " swapped out " not in line]
            print(f"{self.name}, {way}: status {status}", *lines[-8:], sep="\n    ", flush=True)

    def line(self):
        cells, right = [], True
        for way, seen in self.said.items():
            well = seen["status"] == 0 and seen["result"] and seen["result"] == self.said.get("bare", seen)["result"]
            right &= bool(well)
            back = f", in {seen['back']} times" if way != "bare" else ""
            cells.append(f"{way} {'=' if well else 'DIFFERS ' + str(seen['result'])} {seen['s']:.1f} s{back}")
        print(f"{self.name:18}", " | ".join(cells), flush=True)
        return right


def agent(path, capacity, place):
    log = open(f"{place}/agent.log", "w+")
    arguments = ["--socket", f"{place}/clients/agent.sock", "--admin-socket", f"{place}/admin/admin.sock", "--listen", "127.0.0.1:9439"]
    arguments += ["--capacity", capacity, "--device-plugin", "off"]
    child = subprocess.Popen([path, "run", *arguments], stderr=log, stdout=log)
    for _ in range(300):
        try:
            urllib.request.urlopen("http://127.0.0.1:9439/readyz", timeout=2)
            return child, log
        except OSError:
            time.sleep(0.1)
        if child.poll() is not None:
            break
    log.seek(0)
    sys.exit(f"the agent is not ready: {log.read()[-2000:]}")


def published():
    try:
        text = urllib.request.urlopen("http://127.0.0.1:9439/metrics", timeout=5).read().decode()
    except OSError as error:
        return [f"no metrics: {error}"]
    wanted = ("nvshare_switches_total", "nvshare_swap_bytes_total", "nvshare_clean_bytes", "nvshare_drain_stalls", "nvshare_clients")
    return [line for line in text.splitlines() if line.startswith(wanted)]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("names", nargs="*")
    options.add_argument("--library", required=True)
    options.add_argument("--agent")
    options.add_argument("--capacity", default="16G")
    options.add_argument("--at-once", type=int, default=6)
    options.add_argument("--ways", default="bare,library,swaps,agent")
    options = options.parse_args()
    place = tempfile.mkdtemp()
    families = f"{place}/families"
    subprocess.run(["nvcc", "-O2", "-std=c++17", "-cudart", "static", "-arch=native", "-o", families, f"{HERE}/families.cu"], check=True)
    programs = [Program(f"C, {family}", [families, family], {}) for family in FAMILIES]
    programs += [Program(name, PYTHON + [function], more) for name, (function, more) in FRAMEWORKS.items()]
    if options.names:
        programs = [program for program in programs if any(part in program.name for part in options.names)]
    library = {"LD_PRELOAD": os.path.abspath(options.library), "NVSHARE_LOG": "debug", "NVSHARE_SOCKET": f"{place}/clients/agent.sock"}
    ways = {"bare": {}, "library": library, "swaps": {**library, "NVSHARE_DEBUG_SWAP_EVERY": "100ms"}, "agent": library}
    for way in options.ways.split(","):
        began, running = time.monotonic(), None
        if way == "agent":
            if not options.agent:
                continue
            running, log = agent(options.agent, options.capacity, place)
        with ThreadPoolExecutor(options.at_once) as several:
            list(several.map(lambda program: program.run(way, ways[way]), programs))
        print(f"{way}: {time.monotonic() - began:.0f} s", flush=True)
        if running:
            print(*published(), sep="\n")
            running.terminate()
            running.wait()
            log.seek(0)
            warnings = [line for line in log.read().splitlines() if "WARN" in line or "ERROR" in line]
            print("the agent's warnings:", *warnings[-12:], sep="\n    ")
    right = [program.line() for program in programs]
    print(json.dumps({"programs": len(right), "right": sum(right)}))
    return not all(right)


if __name__ == "__main__":
    sys.exit(main())
