#!/usr/bin/env python3
"""What frameworks of today do with device memory, a function each: it computes in rounds with pauses, so that memory can leave
between them, and prints what came out, the same every time it runs.

    frameworks.py NAME        (the names of the functions of PROGRAMS, at the end)
"""
import multiprocessing
import os
import sys
import time

ROUNDS, PAUSE = 20, 0.1
WORDS = 64 << 20


def say(*what):
    print("result", *what, flush=True)


# PyTorch: a small network whose training step is captured, beside tensors that come and go and one that stays.
def torch_trains():
    import torch
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(True)
    stays = torch.arange(WORDS, dtype=torch.int32, device="cuda")
    net = torch.nn.Sequential(torch.nn.Linear(1024, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 1024)).cuda()
    step = torch.optim.SGD(net.parameters(), lr=0.01)
    x, y = torch.randn(256, 1024, device="cuda"), torch.randn(256, 1024, device="cuda")

    def train():
        step.zero_grad(set_to_none=False)
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        step.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train()
    total = 0.0
    for round in range(ROUNDS):
        graph.replay()
        stays += round
        pieces = [torch.full((1 << (18 + (round + n) % 7),), n + round, dtype=torch.int32, device="cuda") for n in range(6)]
        total += sum(int(piece.sum()) for piece in pieces) % 1000003 + train().item()
        time.sleep(PAUSE)
    say(loss.item(), round_(total), int(stays.sum()))


def round_(number):
    return f"{number:.6f}"


# Tensors handed to a process and back, each changed by who did not make it.
def taken(given, back):
    import torch
    for round in range(ROUNDS // 2):
        tensor = given.get()
        tensor += round
        own = torch.full((4 << 20,), round, dtype=torch.int32, device="cuda")
        torch.cuda.synchronize()
        back.put((own, int(tensor.sum())))
        assert given.get() == "done"
        back.put(int(own.sum()))
        del tensor, own


def torch_shared():
    import torch
    import torch.multiprocessing as multi
    context = multi.get_context("spawn")
    given, back = context.Queue(), context.Queue()
    child = context.Process(target=taken, args=(given, back))
    child.start()
    big = torch.arange(16 << 20, dtype=torch.int32, device="cuda")
    total = 0
    for round in range(ROUNDS // 2):
        given.put(big)
        own, seen = back.get()
        total += seen + int(own.sum())
        own *= 3
        torch.cuda.synchronize()
        given.put("done")
        total += back.get()
        del own
        time.sleep(PAUSE)
    child.join()
    say(total, int(big.sum()), child.exitcode)


def numbers():
    import torch

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, at):
            time.sleep(PAUSE / 2)
            return torch.full((1 << 20,), at, dtype=torch.int32, device="cuda")

    return Numbers()


class Lazy:
    """Made in the worker: a class inside a function cannot be sent."""

    def __len__(self):
        return 24

    def __getitem__(self, at):
        return numbers()[at]


def torch_loads():
    import torch
    stays = torch.arange(WORDS, dtype=torch.int32, device="cuda")
    loader = torch.utils.data.DataLoader(Lazy(), batch_size=4, num_workers=2, multiprocessing_context="spawn")
    total = 0
    for batch in loader:
        stays[: batch.numel()] += batch.flatten()
        total += int(batch.sum())
        time.sleep(PAUSE)
    say(total, int(stays.sum()))


def cupy_rounds():
    import cupy
    stays = cupy.arange(WORDS, dtype=cupy.int32)
    other, total = cupy.cuda.Stream(non_blocking=True), 0
    for round in range(ROUNDS):
        stays += round
        done = cupy.cuda.get_current_stream().record()
        with other:
            other.wait_event(done)
            piece = stays[: 8 << 20] * 3
            sorted_ = cupy.sort(piece[::-1])
            total += int(sorted_[1000]) + int(piece.sum())
        other.synchronize()
        del piece, sorted_
        time.sleep(PAUSE)
    say(total, int(stays.sum()))


def cupy_default():
    cupy_rounds()


def cupy_async():
    import cupy
    cupy.cuda.set_allocator(cupy.cuda.MemoryAsyncPool().malloc)
    cupy_rounds()


def cupy_managed():
    import cupy
    cupy.cuda.set_allocator(cupy.cuda.MemoryPool(cupy.cuda.malloc_managed).malloc)
    cupy_rounds()


def jax_rounds():
    import jax
    import jax.numpy as jnp
    key = jax.random.PRNGKey(0)
    a = jax.random.normal(key, (2048, 2048))
    stays = jnp.arange(WORDS, dtype=jnp.int32)

    @jax.jit
    def step(a, round):
        return jnp.tanh(a @ a / 2048) + round * 0.01

    for round in range(ROUNDS):
        a, stays = step(a, round), stays + round
        pieces = [jnp.full((1 << (18 + n),), round) for n in range(6)]
        a = a + sum(int(piece.sum()) for piece in pieces) * 1e-9
        time.sleep(PAUSE)
    say(round_(float(a.sum())), int(stays.astype(jnp.uint32).sum()))


# numba: an array of one process, by a handle of CUDA IPC, in another; and its own deferred frees.
def opened(handle, back):
    from numba import cuda

    @cuda.jit
    def add(a, n):
        at = cuda.grid(1)
        if at < a.size:
            a[at] += n

    for round in range(4):
        with handle as array:
            add[(array.size + 255) // 256, 256](array, round + 1)
            cuda.synchronize()
        time.sleep(PAUSE)
    back.put("done")


def numba_shared():
    import numpy
    from numba import cuda
    own = cuda.to_device(numpy.arange(16 << 20, dtype=numpy.int32))
    stays = cuda.to_device(numpy.arange(WORDS, dtype=numpy.int32))
    context = multiprocessing.get_context("spawn")
    back = context.Queue()
    child = context.Process(target=opened, args=(own.get_ipc_handle(), back))
    child.start()
    assert back.get(timeout=60) == "done"
    child.join()
    time.sleep(3 * PAUSE)
    say(int(own.copy_to_host().astype(numpy.int64).sum()), int(stays.copy_to_host().astype(numpy.int64).sum()), child.exitcode)


def rmm_rounds(resource):
    import cupy
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator
    rmm.mr.set_current_device_resource(resource(rmm.mr))
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    cupy_rounds()


def rmm_pool():
    rmm_rounds(lambda mr: mr.PoolMemoryResource(mr.CudaMemoryResource(), initial_pool_size=1 << 30))


def rmm_async():
    rmm_rounds(lambda mr: mr.CudaAsyncMemoryResource())


def rmm_managed():
    rmm_rounds(lambda mr: mr.ManagedMemoryResource())


def torch_rmm():
    import rmm
    import torch
    from rmm.allocators.torch import rmm_torch_allocator
    rmm.mr.set_current_device_resource(rmm.mr.CudaAsyncMemoryResource())
    torch.cuda.memory.change_current_allocator(rmm_torch_allocator)
    torch.manual_seed(1)
    stays, total = torch.arange(WORDS, dtype=torch.int32, device="cuda"), 0
    for round in range(ROUNDS):
        stays += round
        total += int(torch.full((4 << 20,), round, dtype=torch.int32, device="cuda").sum())
        time.sleep(PAUSE)
    say(total, int(stays.sum()))


PROGRAMS = [torch_trains, torch_shared, torch_loads, torch_rmm, cupy_default, cupy_async, cupy_managed, jax_rounds, numba_shared,
            rmm_pool, rmm_async, rmm_managed]

if __name__ == "__main__":
    # Caches of compiled code of their own would make the first run another program than the second.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    {one.__name__: one for one in PROGRAMS}[sys.argv[1]]()
