"""The NVIDIA GPUs of this machine, and which of them each rank computes on.

CUDA reads CUDA_VISIBLE_DEVICES once, when a program first uses it. So `rank_main` sets
the variable before the script can import MLX. It loads this file before the package
exists: standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

VISIBLE = "CUDA_VISIBLE_DEVICES"
_DEVICE_FILE = re.compile(r"nvidia[0-9]+")


class Share(NamedTuple):
    """The GPU of a rank.

    Attributes:
        visible: the value of CUDA_VISIBLE_DEVICES; None leaves the variable as it is.
        ranks: how many ranks of this machine have the same GPU; 0 without a GPU.
    """

    visible: str | None
    ranks: int


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this machine has, or this container may use.

    The driver makes a file for each. CUDA itself is not asked: it would read
    CUDA_VISIBLE_DEVICES.
    """
    try:
        return len(list(filter(_DEVICE_FILE.fullmatch, os.listdir("/dev"))))
    except OSError:
        return 0


def share_of(visible: str | None, gpus: int, local_rank: int, local_size: int) -> Share:
    """Return the GPU of a rank: those of a machine go to its ranks in turn.

    `mlx.launch --backend nccl` does the same, but takes no notice of a variable that
    the user has set.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
        gpus: how many this machine has.
        local_rank, local_size: this rank among those of the machine, and their number.
    """
    names = usable(visible, gpus)
    if not names:
        return Share(None, 0)
    of_rank = [names[rank % len(names)] for rank in range(local_size)]
    name = of_rank[local_rank]
    return Share(name if len(names) > 1 else None, of_rank.count(name))


def usable(visible: str | None, gpus: int) -> Sequence[str]:
    """Return the GPUs that CUDA would use; it ignores those behind an invalid one.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
        gpus: how many this machine has; 0 also where their files are not visible.
    """
    if visible is None:
        return [str(number) for number in range(gpus)]
    names = []
    for name in map(str.strip, visible.split(",")):
        is_beyond = name.isdecimal() and 0 < gpus <= int(name)
        if not name or name.startswith("-") or is_beyond:
            break
        names.append(name)
    return names


def warning(ranks: int, host: str) -> str:
    """Return the warning for ranks that share a GPU."""
    return (
        f"mlxdist run: {ranks} ranks share a GPU on {host}: they compute in turns, so "
        "timings mean little."
    )


def nccl_problem(ranks: int, host: str) -> str:
    """Return the error for ranks that share a GPU and exchange data over nccl."""
    return (
        f"{ranks} ranks share a GPU on {host}, and nccl takes one rank on each: give "
        "the host as many slots as it has GPUs, or take --backend mpi"
    )
