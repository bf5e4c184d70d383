"""One rank of `memory`: what its process holds before, during and after steps.

memory_rank.py KIND TENSORS, under mpirun. Linux only, since it reads /proc.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ranks.contenders import Contender, make_contender
from ranks.protocol import serve_requests
from ranks.tensors import fresh_gradients


def main() -> None:
    kind, tensors = sys.argv[1:]
    small = make_contender(kind, "10x10", "float32")
    step(small, 0)
    del small
    bare = held()
    made = make_contender(kind, tensors, "float32")

    def turn(steps: int) -> dict[str, Any]:
        step(made, 0)  # makes what lives as long as the optimizer
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        mx.reset_peak_memory()
        for number in range(steps):
            step(made, number)
        peak = held()
        return {
            "bare": bare["private"],
            "peak": peak["peak"] - peak["shared"],
            "steady": peak["private"],
            "proportional": peak["proportional"],
            "mpi_shared": peak["shared"],
            "mlx_peak": mx.get_peak_memory(),
            "mlx_active": mx.get_active_memory(),
            "parameters": bytes_of(made.model.parameters()),
            "state": bytes_of(made.optimizer.state),
        }

    serve_requests(made.rank, turn)


def step(made: Contender, number: int) -> None:
    gradients = fresh_gradients(made.model, number, made.rank)
    made.barrier()
    made.step(gradients)


def bytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree))


def held() -> dict[str, int]:
    """Bytes that this process holds now, and its peak since that was last forgotten.

    "private" is what is resident without memory shared with other processes through
    MPI, which is "shared"; "proportional" counts what is shared by its sharers.
    """
    status = Path("/proc/self/status").read_text()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    shared = _kilobytes("RssShmem", status)
    return {
        "private": _kilobytes("VmRSS", status) - shared,
        "shared": shared,
        "peak": _kilobytes("VmHWM", status),
        "proportional": _kilobytes("Pss", rollup),
    }


def _kilobytes(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found, f"the kernel doesn't tell {name}"
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
