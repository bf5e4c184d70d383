"""What `DistributedOptimizer.init` and `load_state` do, step by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from mlx.nn import Module

from ..arrays.trees import digest, nested
from ..arrays.types import Flat, Tree
from ..comm.agreement import MismatchError, agree
from ..comm.collectives import Collectives
from ..layout.entries import Entry, fingerprint
from ..layout.sharding import Plan
from ..version import __version__
from ..world.world import World
from . import inner as wrapped
from . import state
from .fused_step import cut_all
from .local_update import Update
from .masters import Beside
from .state import StateTree

_FLOATS = ("float32", "float16", "bfloat16", "float64")


_SETTINGS = (
    "strategy",
    "transport",
    "bucket_size",
    "reduce_dtype",
    "wire_dtype",
    "max_norm",
    "skip_nonfinite",
    "check_every",
    "reproducible",
)


def settings(ours: Any) -> list[str]:
    """Versions, and a DistributedOptimizer's and its optimizer's settings."""
    versions = [f"mlxdist {__version__}", f"mlx {version('mlx')}"]
    own = [f"{name} = {getattr(ours, name)}" for name in _SETTINGS]
    own += [
        str(ours._beside),
        f"accumulate = {ours._accumulation.every}",
        f"loss_scale = {ours._loss_scale and ours._loss_scale.option}",
        f"sync_buffers = {ours._buffers and ours._buffers.mode}",
    ]
    return versions + own + wrapped.settings(ours.optimizer)


def dtype_problem(entries: Sequence[Entry]) -> str | None:
    """Which entry can't be averaged for its dtype, or None where all can."""
    for entry in entries:
        if entry.dtype not in _FLOATS:
            return (
                f"{entry} can't be trained: its dtype is none of {', '.join(_FLOATS)}; "
                "freeze it"
            )
    return None


def agree_to_init(
    comm: Collectives, name: str, entries: Sequence[Entry], settings: list[str]
) -> None:
    """Refuses on all ranks where parameters or settings differ, or can't be trained."""
    lines = [*settings, *map(str, entries)]
    agree(
        comm,
        f"{name}.init",
        fingerprint(lines),
        lambda: lines,
        problem=dtype_problem(entries),
    )


def order_of_use(comm: Collectives, paths: Sequence[str]) -> list[str]:
    """The root's order of the paths: as its model was written, so first layers first.

    On other ranks dicts may have been filled in another order.
    """
    every = comm.all_gather_bytes(json.dumps(list(paths)).encode())
    return [str(path) for path in json.loads(every[0])]


def share_parameters(world: World, parameters: Tree) -> None:
    """Gives a model rank 0's parameters on all ranks; a tree must have the same."""
    if isinstance(parameters, Module):
        world.broadcast(parameters)
    elif not world.identical(parameters):
        raise MismatchError(
            "init(parameters): the ranks hold different values. Make them equal with "
            "`parameters = world.broadcast(parameters)` first, or call init(model), "
            "which does it"
        )


def state_so_far(
    comm: Collectives, optimizer: Any, plan: Plan | None, entries: Sequence[Entry]
) -> StateTree:
    """The full state from before, on every rank: gathered, or else rank 0's."""
    if plan is not None:
        own = state.read(optimizer, plan.shard(comm.rank))
        return state.gather(own, plan, comm)
    return state.share(state.read(optimizer, [e.path for e in entries]), comm)


def set_up(
    comm: Collectives,
    optimizer: Any,
    plan: Plan,
    parameters: Flat,
    before: StateTree,
    beside: Beside,
) -> int:
    """Makes this rank's share of the state; what was there before is kept.

    Returns:
        Bytes of per-parameter state that this rank holds.
    """
    state.reset(optimizer, plan.entries)
    state.share_scalars(optimizer, comm)
    shard = cut_all(parameters, plan.pieces(comm.rank), plan)
    optimizer.init(nested(beside.widened(shard)))
    for path, held in state.held(optimizer, shard).items():
        beside.add(path, shard[path], held)
    fresh = state.read(optimizer, shard)
    kept = beside.fitted(state.cut(before, plan, comm.rank), fresh)
    known = {path: fresh[path] for path in kept}
    if state.misfit(known, kept) is None:
        state.write(optimizer, kept)
    return state.nbytes(fresh)


def compile_update(world: World, name: str, update: Update, *, scales: bool) -> None:
    """Has the update compiled, if it works on all ranks.

    One rank a host goes first: they share MLX's folder of compiled kernels, and one
    that another rank is still writing can't be loaded.
    """
    failed = world.is_first_on_host and update.compile(scales=scales)
    agree(world.control, f"{name}.init", 0, list)
    failed = failed or update.compile(scales=scales)
    told = agree(world.control, f"{name}.init", 0, list, number=bool(failed))
    if not any(told):
        update.use_compiled()


def load(
    comm: Collectives,
    call: str,
    optimizer: Any,
    plan: Plan,
    beside: Beside,
    full: Any,
) -> None:
    """Cuts a full state in MLX's layout and writes this rank's shard, or refuses it."""
    wanted = state.read(optimizer, plan.shard(comm.rank))
    given: StateTree = {}
    scalars: list[Flat] = []
    detail = 0
    try:
        flat = state.from_mlx(optimizer, full, plan.by_path)
        given = beside.fitted(state.cut(flat, plan, comm.rank), wanted)
        scalars = state.scalars(optimizer, full)
        problem = state.misfit(wanted, given)
        detail = int(digest(full)[0])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        problem = f"not a state of {type(optimizer).__name__}: {error!r}"
    agree(
        comm,
        call,
        detail,
        lambda: [f"a state with sha256 {detail:016x}..."],
        problem=problem,
        hint="Load the same state on all ranks: read it on one and world.broadcast it.",
    )
    state.write(optimizer, given)
    state.write_scalars(optimizer, scalars)
