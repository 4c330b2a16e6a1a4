#!/usr/bin/env python3
"""Asks a real driver, and an agent beside it, what is told of managed memory. Needs root, Python, libcuda, NVML and a GPU that nobody
else uses; two minutes, 4 GiB of managed memory and 20 GiB of the card. One JSON object a line; ends with 1 if a figure is off.

    python3 docs/gpu/uvm_tools.py [target/debug/nvshare-agent]

Without an agent only the module is asked. A program without the library writes 4 GiB on the host, has the card write them, and reads them
on the host again, some rounds: the agent is started before it, and then after it. What its agent says of it is compared with what the
module counts for this script. Then a program with 20 GiB is killed: when is its memory free, beside an agent and without one?"""

import ctypes as c
import fcntl
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

GIB, ROUNDS, MANAGED, PLAIN = 1 << 30, 3, 4, 20
GETFD = 438  # pidfd_getfd
PORT = 19430
wrong = []


def say(what, **facts):
    print(json.dumps({"what": what, **facts}), flush=True)


def check(what, good, **facts):
    say(what, good=bool(good), **facts)
    if not good:
        wrong.append(what)


def program():
    """Does a step for each line that it reads, and says so."""
    cuda = c.CDLL("libcuda.so.1")

    def must(name, *arguments):
        result = getattr(cuda, name)(*arguments)
        if result:
            sys.exit(f"{name}: {result}")

    size, context, plain, managed = c.c_size_t(MANAGED * GIB), c.c_void_p(), c.c_uint64(), c.c_uint64()
    must("cuInit", 0)
    must("cuCtxCreate_v2", c.byref(context), 0, 0)
    steps = {
        "plain": lambda: must("cuMemAlloc_v2", c.byref(plain), c.c_size_t(PLAIN * GIB)),
        "managed": lambda: must("cuMemAllocManaged", c.byref(managed), size, 1),
        "host writes": lambda: c.memset(managed.value, 1, MANAGED * GIB),
        "card writes": lambda: (must("cuMemsetD8_v2", managed, 2, size), must("cuCtxSynchronize")),
        # By the GiB: ctypes takes lengths of an int.
        "host reads": lambda: [c.string_at(managed.value + n * GIB, GIB) for n in range(MANAGED)],
    }
    print("ready", flush=True)
    for line in sys.stdin:
        steps[line.strip()]()
        print("done", flush=True)


class Program:
    def __init__(self):
        self.child = subprocess.Popen([sys.executable, __file__, "--program"], stdin=-1, stdout=-1, text=True)
        self.child.stdout.readline()
        self.pid = self.child.pid

    def do(self, *steps):
        for step in steps:
            self.child.stdin.write(step + "\n")
            self.child.stdin.flush()
            if self.child.stdout.readline().strip() != "done":
                sys.exit(f"the program ended at: {step}")

    def end(self):
        """How long it takes until nobody waits for it any more."""
        began = time.time()
        self.child.kill()
        self.child.wait()
        return time.time() - began


class Tracker:
    """The module's own count of a process, as the agent asks for it."""

    def __init__(self, pid):
        self.page = mmap.mmap(-1, mmap.PAGESIZE)
        address = c.addressof(c.c_char.from_buffer(self.page))
        system, answers = c.CDLL(None, use_errno=True), []
        pidfd = os.pidfd_open(pid)
        for number in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
            if os.readlink(f"/proc/{pid}/fd/{number}") != "/dev/nvidia-uvm":
                continue
            space = system.syscall(GETFD, pidfd, int(number), 0)
            self.file = os.open("/dev/nvidia-uvm-tools", os.O_RDWR | os.O_CLOEXEC)
            asked = bytearray(struct.pack("QQQ16sIIII", 0, 0, address, b"", 1, space, 0, 0))
            fcntl.ioctl(self.file, 76, asked)
            os.close(space)
            answers.append(struct.unpack_from("I", asked, 48)[0])
            if answers[-1] == 0:
                fcntl.ioctl(self.file, 60, bytearray(struct.pack("QII", 0x207, 0, 0)))
                break
            os.close(self.file)
        os.close(pidfd)
        self.answers = answers

    def counts(self):
        counters = struct.unpack_from("10Q", self.page)
        return {"in": counters[0], "out": counters[1], "cpu_faults": counters[2], "faults": counters[9]}

    def close(self):
        os.close(self.file)


class Agent:
    def __init__(self, path):
        self.directory = tempfile.TemporaryDirectory()
        at = lambda name: f"{self.directory.name}/{name}"
        os.mkdir(at("clients"))
        os.mkdir(at("admin"))
        self.log = open(at("log"), "w")
        self.child = subprocess.Popen(
            [path, "--socket", at("clients/socket"), "--admin-socket", at("admin/socket"), "--listen", f"127.0.0.1:{PORT}", "--uvm-counters"],
            stdout=self.log, stderr=self.log)
        self.wait_for(lambda state: state["observer"]["scanned"], "the agent's first look")

    def state(self):
        return json.load(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/v1/state", timeout=5))

    def wait_for(self, there, what, seconds=60):
        until = time.time() + seconds
        while time.time() < until:
            try:
                if there(self.state()):
                    return True
            except OSError:
                pass
            time.sleep(0.1)
        check(f"waited in vain for {what}", False, log=open(self.log.name).read()[-3000:])
        return False

    def of(self, pid):
        """What it says of a process, client or not."""
        state = self.state()
        figures = [one["totals"] for one in state["clients"] if one["process"]["pid"] == pid]
        figures += [one for one in state["processes"] if one["process"]["pid"] == pid]
        if not figures:
            return dict.fromkeys(("in", "out", "cpu_faults", "faults"), 0)
        one = figures[0]
        return {"in": one["uvm_to_device"], "out": one["uvm_bytes"] - one["uvm_to_device"],
                "cpu_faults": one["uvm_cpu_faults"], "faults": one["uvm_faults"]}

    def end(self):
        self.child.terminate()
        self.child.wait()
        self.log.close()
        self.directory.cleanup()


ROUND = ("host writes", "card writes", "host reads")


def faults(agent, first):
    """Whether the agent was there first, or the program."""
    name = "the agent first" if first else "the program first"
    beside = Agent(agent) if first else None
    bystander, one = Program(), Program()
    bystander.do("plain")
    one.do("managed")
    if not first:
        one.do("host writes")
        beside = Agent(agent)
        # Nothing is said of a process before its first call.
    say(name, observer=beside.state()["observer"]["uvm"])
    followed = lambda state: state["observer"]["uvm"]["followed"] == 1
    beside.wait_for(followed, "the program to be counted")
    module = Tracker(one.pid)
    before = beside.of(one.pid)
    for _ in range(ROUNDS):
        one.do(*ROUND)
    time.sleep(3)
    counted, told = module.counts(), beside.of(one.pid)
    told = {what: figure - before[what] for what, figure in told.items()}
    off = {what: abs(told[what] - figure) / max(1, figure) for what, figure in counted.items()}
    check(f"{name}: what the agent says is what the module counts, within 5 %", max(off.values()) < 0.05, told=told, counted=counted)
    moved = ROUNDS * MANAGED * GIB
    check(f"{name}: as much as was touched", all(abs(told[way] - moved) < 0.05 * moved or way == "in" and told[way] < moved for way in ("in", "out")),
          moved=moved, told=told)
    check(f"{name}: nothing of the bystander", max(beside.of(bystander.pid).values()) == 0)
    module.close()
    one.end()
    beside.wait_for(lambda state: state["observer"]["uvm"]["followed"] == 0, "the dead program to be let go")
    bystander.end()
    beside.end()


def frees(agent):
    """When the memory of a program that was killed is free."""
    nvml, card = c.CDLL("libnvidia-ml.so.1"), c.c_void_p()
    nvml.nvmlInit_v2()
    nvml.nvmlDeviceGetHandleByIndex_v2(0, c.byref(card))

    def used():
        memory = (c.c_ulonglong * 3)()
        nvml.nvmlDeviceGetMemoryInfo(card, memory)
        return memory[2]

    def killed(hold):
        before, one = used(), Program()
        one.do("plain", "managed", "card writes")
        if beside:
            beside.wait_for(lambda state: state["observer"]["uvm"]["followed"] == 1, "the program to be counted")
        tracker = Tracker(one.pid) if hold else None
        took, left = one.end(), []
        began = time.time()
        while time.time() < began + 1:
            left.append((round(time.time() - began, 4), (used() - before) >> 20))
            if left[-1][1] < 256:
                break
            time.sleep(0.002)
        if tracker:
            tracker.close()
        return {"seconds_to_end": round(took, 3), "mib_left_at_once": left[0][1], "free_after_seconds": left[-1][0], "mib_left": left[-1][1]}

    beside = None
    say("a program with 20 GiB is killed, nobody beside it", **killed(False))
    say("a program with 20 GiB is killed, a tracker is held", **killed(True))
    if agent:
        beside = Agent(agent)
        for _ in range(5):
            seen = killed(False)
            check("a program with 20 GiB is killed beside an agent that counts its faults: its memory is free at once", seen["mib_left_at_once"] < 256, **seen)
        beside.end()


def main():
    if sys.argv[1:2] == ["--program"]:
        return program()
    agent = sys.argv[1] if sys.argv[1:] else None
    one = Program()
    one.do("managed", "host writes")
    tracker = Tracker(one.pid)
    say("what the module answers about a program's descriptors of /dev/nvidia-uvm", answers=[hex(answer) for answer in tracker.answers])
    one.do("card writes", "host reads")
    counts = tracker.counts()
    check("it counts 4 GiB in and out", counts["in"] == counts["out"] == MANAGED * GIB, **counts)
    tracker.close()
    one.end()
    if agent:
        faults(agent, True)
        faults(agent, False)
    frees(agent)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
