"""Threads that multiply sparse matrices in streams of their own (PyTorch), and compare with the results of one thread.
Met an illegal address once with the library preloaded and no swap at all (docs/gpu.md); this looks for it again.

    sparse.py SECONDS

The last line has the number of products and of wrong ones; status 1 if any is wrong or a call failed."""

import random
import sys
import threading
import time

import torch

end = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 20)
torch.manual_seed(1)
sizes = [(2000, 3000, 64), (5000, 5000, 128), (12000, 8000, 32), (700, 20000, 256)]
work = []
for rows, columns, width in sizes:
    dense = (torch.rand(rows, columns, device="cuda") < 0.01) * torch.randint(1, 4, (rows, columns), device="cuda").float()
    right = torch.randint(0, 3, (columns, width), device="cuda").float()  # small whole numbers: sums are exact in any order
    work.append((dense.to_sparse_csr(), dense.to_sparse_coo(), right, (dense @ right).round()))
    del dense
torch.cuda.synchronize()
done, wrong, failed = [0] * 8, [0] * 8, []


def multiply(me: int) -> None:
    rng = random.Random(me)
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            while time.monotonic() < end and not failed:
                csr, coo, right, want = work[rng.randrange(len(work))]
                a = csr if rng.random() < 0.5 else coo.coalesce()
                temporary = torch.empty(rng.randrange(1, 1 << 24), device="cuda")  # moves the allocator's blocks about
                got = torch.sparse.mm(a, right)
                del temporary
                if rng.random() < 0.02:
                    torch.cuda.empty_cache()
                if rng.random() < 0.05:
                    stream = torch.cuda.Stream()
                wrong[me] += int((got.round() != want).sum().item()) > 0
                done[me] += 1
    except Exception as error:  # noqa: BLE001
        failed.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")


threads = [threading.Thread(target=multiply, args=(i,)) for i in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(*failed, sep="\n")
print(f"products {sum(done)} wrong {sum(wrong)} failed {len(failed)}", flush=True)
sys.exit(bool(failed) or sum(wrong) > 0)
