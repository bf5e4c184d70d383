"""What `step` measures: cases, who takes part, and who fits into memory together."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.turns import Player, mpi_player

from mlxdist.launcher import openmpi
from parts.shapes import shapes_of

PARTS = Path(__file__).parent
SIZES = ("1M", "10M", "50M", "200M", "2000x1000", "2000x1")
QUICK_SIZES = ("1M", "100x1000")
DTYPES = ("float32", "bfloat16")
OURS = ("sharded", "replicated native", "replicated host")
UPSTREAM, ALLOCATOR = "upstream", "upstream tuned"
TORCH = ("torch", "torch zero")
STREAM = "memory"
BIG = 100_000_000  # parameters beyond which upstream as installed is the only rival


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
    efforts = {"1M": (15, 10), "10M": (12, 6), "50M": (10, 3), "200M": (4, 4)}
    return efforts.get(size, (10, 4))


def pairs(case: Case, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """The ratios to take: ours against each of the others that are wanted."""
    if case.parameters > BIG:
        wanted = [name for name in wanted if name in (*OURS, UPSTREAM)]
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


class Launch(NamedTuple):
    """Contenders that take turns; with `trim` they give memory back between turns."""

    names: list[str]
    trim: bool


def launches(case: Case, wanted: Sequence[str], ranks: int, room: int) -> list[Launch]:
    """The contenders in launches that fit into `room` bytes, pair by pair.

    A pair to compare is never split. Memory is given back only where a pair needs
    that, since getting it again takes seconds, before the time of a sample begins.
    """
    every = pairs(case, wanted)
    trim = any(need(case, pair, ranks, trim=False) > room for pair in every)
    made: list[list[str]] = []
    for pair in every:
        for group in made:
            joined = list(dict.fromkeys([*group, *pair]))
            if need(case, joined, ranks, trim=trim) <= room:
                group[:] = joined
                break
        else:
            made.append(list(pair))
    return [Launch(names, trim) for names in made or [list(wanted)]]


def need(case: Case, names: Sequence[str], ranks: int, *, trim: bool) -> int:
    """Bytes that contenders need at once, about.

    Each holds parameters and state all the time, and as much again in its turn, which
    stays with it unless it gives memory back, as upstream does as installed.
    """
    held = {"sharded": 1 + 2 / ranks, "torch": 4.0, "torch zero": 2 + 2 / ranks}
    at_work = dict.fromkeys(TORCH, 0.0)
    keeps = [
        0.0 if trim or name == UPSTREAM else at_work.get(name, 4) for name in names
    ]
    extra = [
        at_work.get(name, 4) - kept for name, kept in zip(names, keeps, strict=True)
    ]
    rest = [held.get(name, 3) for name in names]
    return round(ranks * case.nbytes * (sum(rest) + sum(keeps) + max(extra)))


def player(name: str, case: Case, ranks: int, store: Path) -> Player:
    """How a contender is started; `store` is where PyTorch's ranks find each other."""
    if name == STREAM:
        return mpi_player(name, ranks, PARTS / "stream_rank.py")
    if name not in TORCH:
        arguments = (name, case.tensors, case.dtype)
        settings = {}
        if name in (UPSTREAM, ALLOCATOR):
            settings["MLX_MPI_LIBNAME"] = openmpi.find_libmpi() or ""
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
