"""One rank of a contender of `step` that uses PyTorch, with gloo and AdamW.

torch_rank.py CONTENDER TENSORS DTYPE, with RANK in the environment. Gradients are views
of flat buckets of 25 MB, as in DistributedDataParallel. The buckets are divided and
all-reduced in place.
"""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from ranks.protocol import serve_requests
from ranks.shapes import Shapes, shapes_of

BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's default


def main() -> None:
    name, tensors, dtype = sys.argv[1:]
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = f"file://{os.environ['TORCH_STORE']}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    parameters, buckets = make_parameters(shapes_of(tensors), getattr(torch, dtype))
    optimizer: Any
    if name == "torch":
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    else:
        optimizer = ZeroRedundancyOptimizer(
            parameters,
            optimizer_class=torch.optim.AdamW,
            parameters_as_bucket_view=True,
            lr=1e-3,
            fused=True,
        )

    def step() -> None:
        for bucket in buckets:
            bucket.div_(size)
        works = [dist.all_reduce(bucket, async_op=True) for bucket in buckets]
        for work in works:
            work.wait()
        optimizer.step()

    def handle(steps: int, warmup: int, **_: Any) -> dict[str, Any]:
        seconds = []
        for number in range(-warmup, steps):
            for bucket in buckets:
                bucket.fill_(1e-3 * (number % 5 + rank + 1))
            dist.barrier()
            began = time.perf_counter()
            step()
            if number >= 0:
                seconds.append(time.perf_counter() - began)
        return {"seconds": seconds}

    serve_requests(rank, handle)
    dist.destroy_process_group()


def make_parameters(
    shapes: Shapes, dtype: torch.dtype
) -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
    """Return parameters and the flat buckets of their gradients, last layers first."""
    parameters = [
        torch.nn.Parameter(torch.full(shape, 0.02, dtype=dtype))
        for shape in shapes.values()
    ]
    groups: list[list[torch.nn.Parameter]] = [[]]
    available = BUCKET_BYTES
    for parameter in reversed(parameters):
        nbytes = parameter.numel() * parameter.element_size()
        if groups[-1] and nbytes > available:
            groups.append([])
            available = BUCKET_BYTES
        groups[-1].append(parameter)
        available -= nbytes
    return parameters, [_share_bucket(group) for group in groups]


def _share_bucket(group: list[torch.nn.Parameter]) -> torch.Tensor:
    bucket = torch.zeros(sum(p.numel() for p in group), dtype=group[0].dtype)
    start = 0
    for parameter in group:
        size = math.prod(parameter.shape)
        parameter.grad = bucket[start : start + size].view(parameter.shape)
        start += size
    return bucket


if __name__ == "__main__":
    main()
