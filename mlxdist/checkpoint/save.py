"""How a checkpoint is saved: each rank its file, and one commit for all.

Every rank does the same steps; after each one the ranks tell one another how it went,
and where it failed on one, all of them give up and raise the same error. Nothing that
stood in the folder before is touched until the new checkpoint is whole.
"""

from __future__ import annotations

import json
import platform
import secrets
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays.numpy_view import raw
from ..arrays.trees import dtype_name
from ..arrays.types import Array
from ..comm.agreement import OnAllRanks, agree
from ..comm.together import together
from ..layout.entries import fingerprint
from ..optim.checks import state_scalars
from ..version import __version__
from . import directory as saves
from . import partition as contents
from . import user_data as extra
from .block_file import BLOCK, Writer
from .directory import Save
from .manifest import SavedArray
from .partition import Layout, Part
from .snapshot import Snapshot, leaves_of

_DRIFT = (
    "If parameters or state differ, a rank changed them outside of update(), or its "
    "memory failed: start again from the last checkpoint, which is as it was. `extra` "
    "and the sampler have to be the same on all ranks."
)


_ROW = 8192  # bytes


class Request(NamedTuple):
    """What the user asked for; `folder` is where `name` leads on this host."""

    name: str
    folder: Path
    step: int
    keep: int | None
    background: bool

    @property
    def lines(self) -> list[str]:
        """What has to be the same on all ranks."""
        options = f"keep {self.keep}, background {self.background}"
        return [f"folder {self.name}", f"to be saved as step {self.step}", options]

    @property
    def problem(self) -> str | None:
        if isinstance(self.step, bool) or not isinstance(self.step, int):
            return f"step is {self.step!r}; it must be a whole number"
        if not 0 <= self.step < 10**16:
            return f"step is {self.step}; it must be 0 or more"
        if self.keep is not None and not (isinstance(self.keep, int) and self.keep > 0):
            return f"keep is {self.keep!r}; it must be 1 or more, or None for all"
        return None


def agree_to_save(
    request: Request,
    optimizer: Any,
    take: Callable[[], Snapshot],
    problem: str | None,
) -> tuple[Any, Save]:
    """Compares what the ranks are about to save; the snapshot, and the save's name.

    Args:
        problem: what refuses the call on all ranks.

    Raises:
        MismatchError: on all ranks, where they differ: also where parameters do, or
            replicated state.
    """
    taken, serial, lines = None, 0, []
    problem = problem or request.problem
    world = optimizer.world
    if request.background and world.size > 1 and world.host_transport is None:
        problem = "background=True works over MPI alone"
    try:
        taken = take()
        lines = [*request.lines, *_lines(taken, optimizer)]
        last = saves.listed(request.folder)[:1]
        serial = 1 + max((save.serial for save in last), default=0)
    except OnAllRanks:
        raise  # the others know
    except (ValueError, OSError) as error:
        problem = problem or str(error)
    serials = agree(
        world.control,
        "save_checkpoint",
        fingerprint(lines),
        lambda: lines,
        number=serial,
        problem=problem,
        hint=_DRIFT,
    )
    return taken, Save(int(max(serials)), request.step)


def _lines(taken: Snapshot, optimizer: Any) -> list[str]:
    buffers = set(taken.buffers)
    sums = {
        "/".join(filter(None, identity)): array
        for identity, array in taken.every.items()
        if identity[0] != "parameters" or identity[1] not in buffers
    }
    items = (
        taken.extra.items() if isinstance(taken.extra, dict) else [("", taken.extra)]
    )
    return [
        f"{optimizer._updates} steps done",
        *optimizer._require_plan().lines,
        *state_scalars(optimizer._inner),
        f"sampler {json.dumps(taken.sampler)}",
        *(f"extra {name} {json.dumps(value)[:200]}" for name, value in items),
        f"extra with {fingerprint(taken.extra):016x}",
        *(f"{name} with sum {_checksum(sums[name]):08x}" for name in sorted(sums)),
    ]


class Job(NamedTuple):
    """A save under way, on this rank."""

    request: Request
    save: Save
    token: str
    layout: Layout
    about: dict[str, Any]  # of the manifest, but for what is known when it is written
    leader: int  # the first rank that sees the same folder
    rank: int
    writer: Writer

    @property
    def failed(self) -> str:
        return (
            f"the checkpoint of step {self.save.step} was not saved in "
            f"{self.request.folder}; those before it are as they were"
        )

    @property
    def leads(self) -> bool:
        return self.leader == self.rank


def begin(request: Request, save: Save, taken: Snapshot, optimizer: Any) -> Job:
    """Plans who writes what, and opens this rank's file in a folder beside."""
    comm, plan = optimizer.world.control, optimizer._require_plan()
    told = {
        "held": _held(taken.own),
        "random": extra.random_key(),
        "token": secrets.token_hex(8),
        "buffers": [_checksum(taken.every["parameters", p, ""]) for p in taken.buffers],
    }
    answers = [json.loads(d) for d in comm.all_gather_bytes(json.dumps(told).encode())]
    layout = _plan_files(taken, answers, plan, f"step {request.step}")
    about = _about(request, taken, optimizer, [answer["random"] for answer in answers])
    token = str(answers[0]["token"])
    place = request.folder / save.unfinished(token)
    files = [place / file_name(rank) for rank in range(comm.size)]
    writer, problem = None, None
    try:
        place.mkdir(parents=True, exist_ok=True)
        writer = Writer(files[comm.rank])
    except OSError as error:
        problem = str(error)
    together(comm.all_gather_bytes, f"{place} can't be written", problem)
    assert writer is not None
    leader = next(rank for rank, file in enumerate(files) if file.exists())
    if leader == comm.rank:
        saves.sweep(request.folder, place.name)
    return Job(request, save, token, layout, about, leader, comm.rank, writer)


def file_name(rank: int) -> str:
    return f"rank-{rank:05}.safetensors"


def _held(own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        kind: {path: extra.described(held) for path, held in tree.items()}
        for kind, tree in own.items()
    }


def _checksum(array: Array) -> int:
    """Sees any one flipped bit, and what moved by more than 8 KiB; 15 GB a second."""
    data = raw(array)
    whole = data.nbytes // _ROW * _ROW
    sums = data[:whole].view(np.uint64).reshape(-1, _ROW // 8).sum(axis=1)
    return zlib.crc32(data[whole:].data, zlib.crc32(sums.data))


def _plan_files(
    taken: Snapshot, answers: Sequence[Any], plan: Any, about: str
) -> Layout:
    shares = contents.sharded([answer["held"] for answer in answers], plan)
    first = answers[0]["buffers"]
    odd = {
        path
        for index, path in enumerate(taken.buffers)
        if any(answer["buffers"][index] != first[index] for answer in answers)
    }
    every = [
        SavedArray(*identity, dtype_name(array.dtype), tuple(array.shape))
        for identity, array in taken.every.items()
    ]
    # Running statistics and the like, where ranks differ, are the root's.
    alone = [a for a in every if a.kind == "parameters" and a.path in odd]
    shares[0] += [Part(array, 0, array.size) for array in alone]
    contents.spread(shares, [array for array in every if array not in alone])
    return contents.lay_out(shares, [a for a in every if not a.size], about)


def _about(
    request: Request, taken: Snapshot, optimizer: Any, random: Sequence[Any]
) -> dict[str, Any]:
    plan = optimizer._require_plan()
    versions = {"mlxdist": __version__, "mlx": version("mlx")}
    return {
        "step": request.step,
        "saved_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "world_size": plan.ranks,
        "strategy": plan.strategy,
        "layout": f"{plan.fingerprint:016x}",
        "versions": {**versions, "python": platform.python_version()},
        "optimizer": leaves_of(optimizer),
        "counters": optimizer._counters(),
        "random": tuple((high, low) for high, low in random),
        "sampler": taken.sampler,
        "extra": taken.extra,
        "block": BLOCK,
    }
