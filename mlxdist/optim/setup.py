"""Initialization: the same parameters and state on every rank, and a plan of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

from mlx.nn import Module

from .. import version
from ..arrays.trees import (
    cut_all,
    digest,
    dtype_problem,
    entries_of,
    leaves_of,
    trainable,
)
from ..arrays.types import Flat, Named, Tree
from ..comm.agreement import MismatchError, agree, no_lines, result_or_problem
from ..comm.collectives import Collectives
from ..layout.entries import Entry, fingerprint
from ..layout.paths import KeyPath
from ..layout.sharding import Plan, make_plan
from ..world.world import World
from . import state
from .compilation import compile_update
from .inner_optimizer import InnerOptimizer
from .options import Options
from .pipeline import Pipelines
from .state import StateTree
from .weight_copies import WeightCopies


class Initialized(NamedTuple):
    """What `initialize` made: the pipelines, and every rank's bytes of state."""

    pipelines: Pipelines
    state_bytes_by_rank: tuple[int, ...]


def initialize(
    world: World,
    name: str,
    inner: InnerOptimizer,
    options: Options,
    parameters: Tree,
    old_plan: Plan | None,
) -> Initialized:
    """Put the same parameters and state on all ranks, and plan who owns what.

    Args:
        name: of the optimizer, for errors.
        old_plan: of an earlier call, whose state is kept where it fits.
    """
    entries, problem = read_entries(trainable(parameters))
    problem = problem or inner.wrapping.init_problem(
        sharded=options.strategy != "replicated", model=isinstance(parameters, Module)
    )
    agree_to_init(world, name, entries, inner, options, problem)
    tree = trainable(parameters)
    before = earlier_state(world.control, inner, old_plan, tree)
    flat = share_parameters(world, parameters)
    plan = plan_parameters(world.control, inner, options, entries, list(flat))
    nbytes = make_state(world.control, inner, plan, flat, before, options.copies)
    compiled = compile_update(world, name, inner, plan, options)
    pipelines = Pipelines(world, name, plan, inner, options, compiled=compiled)
    return Initialized(pipelines, state_bytes_by_rank(world, name, nbytes))


def empty_plan(world: World, options: Options) -> Plan:
    """Return the plan of an optimizer that is not initialized."""
    return make_plan(
        (), world.size, strategy=options.strategy, bucket_size=options.bucket_size
    )


def read_entries(tree: Tree) -> tuple[Sequence[Entry], str | None]:
    """Return the parameters of a tree, and why they can't be trained, or None."""
    entries, problem = result_or_problem(entries_of, tree)
    if entries is None:
        return (), problem
    if entries and not isinstance(tree, dict):
        return entries, (
            f"the parameters are a {type(tree).__name__}, for which MLX's optimizers "
            'can\'t hold state; put it into a dict: {"parameters": tree}'
        )
    return entries, dtype_problem(entries)


def agree_to_init(
    world: World,
    name: str,
    entries: Sequence[Entry],
    inner: InnerOptimizer,
    options: Options,
    problem: str | None,
) -> None:
    """Refuse on all ranks where parameters or settings differ, or can't be trained."""
    sharded = options.strategy != "replicated"
    transport = world.transport(options.transport, sharded=sharded)
    lines = [
        f"mlxdist {version.__version__}",
        f"mlx {metadata.version('mlx')}",
        *options.lines(),
        f"transport in use = {transport.name}",
        *inner.settings(),
        *map(str, entries),
    ]
    agree(
        world.control,
        f"{name}.init",
        fingerprint(lines),
        lambda: lines,
        problem=problem,
    )


def earlier_state(
    comm: Collectives, inner: InnerOptimizer, plan: Plan | None, parameters: Tree
) -> StateTree:
    """Return the full state from before `init`, on every rank: gathered, or rank 0's.

    Assigns the trainable parameters, whole ones, to the leaf optimizers.
    """
    if plan is not None:
        shard = state.read(inner, plan.shard(comm.rank))
        full = state.gather(shard, plan, comm)
        inner.assign(parameters)
        return full
    inner.assign(parameters)
    paths = leaves_of(parameters)
    return state.share(state.read(inner, paths), paths, comm)


def share_parameters(world: World, parameters: Tree) -> Flat:
    """Return rank 0's parameters on all ranks; a tree must have the same already.

    Raises:
        MismatchError: on all ranks, where a tree's values differ.
    """
    if isinstance(parameters, Module):
        world.broadcast(parameters)
    elif not world.identical(parameters):
        raise MismatchError(
            "init(parameters): the ranks hold different values. Make them equal with "
            "`parameters = world.broadcast(parameters)` first, or call init(model), "
            "which does it"
        )
    return leaves_of(trainable(parameters))


def plan_parameters(
    comm: Collectives,
    inner: InnerOptimizer,
    options: Options,
    entries: Sequence[Entry],
    paths: Sequence[KeyPath],
) -> Plan:
    """Plan buckets and owners, in the order in which rank 0's model was written.

    Dicts of other ranks may have been filled in another order.
    """
    path_of = {entry.path.text: entry.path for entry in entries}
    orders = comm.all_gather_bytes(json.dumps(list(map(str, paths))).encode())
    return make_plan(
        entries,
        comm.size,
        strategy=options.strategy,
        bucket_size=options.bucket_size,
        costs=inner.costs(entries),
        order=[path_of[text] for text in json.loads(orders[0])],
    )


def make_state(
    comm: Collectives,
    inner: InnerOptimizer,
    plan: Plan,
    parameters: Flat,
    before: StateTree,
    copies: WeightCopies,
) -> int:
    """Make this rank's shard of the state, and keep in it what there was before.

    Returns:
        Bytes of per-parameter state on this rank.
    """
    state.reset(inner, plan)
    state.share_scalars(inner, comm)
    shard = cut_all(parameters, plan.pieces(comm.rank), plan)
    inner.init(copies.masters.widened(shard))
    for path, arrays in state.dicts(inner, shard).items():
        copies.add(path, shard[path], arrays)
    fresh = state.read(inner, shard)
    kept = copies.completed(state.cut(before, plan, comm.rank), fresh)
    if state.misfit({path: fresh[path] for path in kept}, kept) is None:
        state.write(inner, kept)
    return state.nbytes(fresh)


def state_bytes_by_rank(world: World, name: str, nbytes: int) -> tuple[int, ...]:
    """Return every rank's number of bytes of state."""
    every = agree(world.control, f"{name}.init", 0, no_lines, number=nbytes)
    return tuple(int(number) for number in every)


def gather_full_state(
    world: World, call: str, inner: InnerOptimizer, plan: Plan
) -> Tree:
    """Return the full state in MLX's layout, on every rank. Called by all of them."""
    comm = world.control
    agree(comm, call, plan.fingerprint)
    shard = state.read(inner, plan.shard(comm.rank))
    return state.to_mlx(inner, state.gather(shard, plan, comm))


def load_full_state(
    world: World,
    call: str,
    inner: InnerOptimizer,
    plan: Plan,
    copies: WeightCopies,
    full: Tree,
) -> None:
    """Write this rank's shard of a full state in MLX's layout, or refuse it.

    Raises:
        MismatchError: on all ranks, and nothing is loaded, where it lacks a parameter,
            its shapes or dtypes are others, or the ranks were given different states.
    """
    wanted = state.read(inner, plan.shard(world.rank))
    shard: StateTree = {}
    scalars: list[Named] = []
    checksum = 0
    try:
        flat = state.from_mlx(inner, full, plan.by_path)
        shard = copies.completed(state.cut(flat, plan, world.rank), wanted)
        scalars = state.scalars_from_mlx(inner, full)
        problem = state.misfit(wanted, shard)
        checksum = int(digest(full)[0])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        problem = f"not a state of {type(inner.optimizer).__name__}: {error!r}"
    agree(
        world.control,
        call,
        checksum,
        lambda: [f"a state with sha256 {checksum:016x}..."],
        problem=problem,
        remedy="Read the state on one rank and world.broadcast it to all.",
    )
    state.write(inner, shard)
    state.write_scalars(inner, scalars)
