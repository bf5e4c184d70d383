"""What `step` measures: cases, who takes part, and who fits into memory together."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.turns import Player, mpi_player

from mlxdist import runtime
from parts.shapes import shapes_of

PARTS = Path(__file__).parent
SIZES = ("1M", "10M", "50M", "200M", "2000x1000", "2000x1")
QUICK_SIZES = ("1M", "100x1000")
DTYPES = ("float32", "bfloat16")
OURS = ("sharded", "replicated native", "replicated host")
UPSTREAM, ALLOCATOR = "upstream", "upstream tuned"
TORCH = ("torch", "torch zero")
STREAM = "memory"
BIG = 100_000_000  # parameters beyond which contenders give memory back between turns


class Case(NamedTuple):
    """Tensors of a dtype, and how often each contender steps."""

    tensors: str
    dtype: str
    turns: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.tensors} {self.dtype}"

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in shapes_of(self.tensors).values())

    @property
    def nbytes(self) -> int:
        return self.parameters * (4 if self.dtype == "float32" else 2)

    @property
    def trim(self) -> bool:
        return self.parameters > BIG


def cases(only: Sequence[str], *, quick: bool) -> list[Case]:
    """All cases, or those whose names contain one of the words."""
    made = [
        Case(size, dtype, *_effort(size, quick=quick))
        for size in (QUICK_SIZES if quick else SIZES)
        for dtype in DTYPES
        if dtype == "float32" or "x" not in size
    ]
    return [case for case in made if not only or any(w in case.name for w in only)]


def _effort(size: str, *, quick: bool) -> tuple[int, int]:
    if quick:
        return 3, 2
    efforts = {"1M": (15, 10), "10M": (12, 6), "50M": (10, 3), "200M": (6, 2)}
    return efforts.get(size, (10, 4))


def pairs(wanted: Sequence[str]) -> list[tuple[str, str]]:
    """The ratios to take: ours against each of the others that are wanted."""
    others = {
        "sharded": (UPSTREAM, ALLOCATOR, *TORCH),
        "replicated native": (UPSTREAM, ALLOCATOR),
        "replicated host": (UPSTREAM, ALLOCATOR),
    }
    every = [(ours, other) for ours in OURS for other in others[ours]]
    return [pair for pair in every if set(pair) <= set(wanted)]


def contenders(words: Sequence[str]) -> list[str]:
    """All contenders, or those named; PyTorch's where it is installed.

    Raises:
        ValueError: one is not known.
    """
    every = [*OURS, UPSTREAM, ALLOCATOR]
    if importlib.util.find_spec("torch"):
        every += TORCH
    if unknown := set(words) - set(every):
        raise ValueError(
            f"no contender {unknown.pop()!r}; there are {', '.join(every)}"
        )
    return [name for name in every if not words or name in words]


def groups(case: Case, wanted: Sequence[str], ranks: int, room: int) -> list[list[str]]:
    """The contenders in groups that fit into `room` bytes together, pair by pair.

    Each group is a launch of its own, so that a pair to compare is never split.
    """
    made: list[list[str]] = []
    for pair in pairs(wanted):
        for group in made:
            joined = list(dict.fromkeys([*group, *pair]))
            if need(case, joined, ranks) <= room:
                group[:] = joined
                break
        else:
            made.append(list(pair))
    return made or [list(wanted)]


def need(case: Case, names: Iterable[str], ranks: int) -> int:
    """Bytes that contenders need at once, about.

    Each holds parameters and state all the time, and as much again in its turn, which
    stays with it unless it gives memory back.
    """
    held = {"sharded": 1 + 2 / ranks, "torch": 4, "torch zero": 2 + 2 / ranks}
    rest = [held.get(name, 3) * case.nbytes for name in names]
    extra = [4.0 * case.nbytes if "torch" not in name else 0.0 for name in names]
    at_work = max(extra) if case.trim else sum(extra)
    return round(ranks * (sum(rest) + at_work))


def player(name: str, case: Case, ranks: int, store: Path) -> Player:
    """How a contender is started; `store` is where PyTorch's ranks find each other."""
    if name == STREAM:
        return mpi_player(name, ranks, PARTS / "stream_rank.py")
    if name not in TORCH:
        arguments = (name, case.tensors, case.dtype)
        settings = {}
        if name in (UPSTREAM, ALLOCATOR):
            settings["MLX_MPI_LIBNAME"] = runtime.find_libmpi() or ""
        return mpi_player(name, ranks, PARTS / "step_rank.py", *arguments, **settings)
    script = str(PARTS / "torch_rank.py")
    command = [sys.executable, script, name, case.tensors, case.dtype]
    settings = {
        "WORLD_SIZE": str(ranks),
        "TORCH_STORE": str(store / name.replace(" ", "-")),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    commands = [["env", f"RANK={rank}", *command] for rank in range(ranks)]
    return Player(name, ranks, commands, settings)
