"""Initialization: the same parameters and state on every rank, and a plan of both."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from typing import NamedTuple

from mlx.nn import Module

from .. import version
from ..arrays.trees import (
    all_parameters,
    dtype_problem,
    entries_of,
    leaves_of,
    trainable,
)
from ..arrays.types import Flat, Tree
from ..comm.agreement import (
    MismatchError,
    agree,
    agree_on_success,
    error_text,
    result_or_problem,
)
from ..comm.collectives import Collectives
from ..layout.entries import Entry, fingerprint
from ..layout.paths import KeyPath
from ..layout.sharding import Plan, make_plan
from ..world.world import World
from . import state
from .assigned_state import find_assigned, take_assigned
from .compilation import compile_update
from .inner_optimizer import InnerOptimizer
from .inner_snapshot import InnerSnapshot
from .options import Options
from .pipeline import Pipelines
from .shard_mark import put_mark
from .share_weights import share_module
from .state_layout import StateLayout
from .state_setup import (
    Carried,
    carry_over,
    fit_into,
    make_state,
)

_LISTED = 8  # parameters that are named where they begin with new state


class Initialized(NamedTuple):
    """What `initialize` made.

    Attributes:
        pipelines: the ways to run a step.
        layout: of this rank's state.
        state_bytes_by_rank: every rank's bytes of per-parameter state.
        begun_anew: the parameters that had state before and begin with new state, or
            that are new since an earlier `init`, and why.
        frozen_bytes: bytes of the model's arrays that are not trained.
    """

    pipelines: Pipelines
    layout: StateLayout
    state_bytes_by_rank: tuple[int, ...]
    begun_anew: tuple[str, ...]
    frozen_bytes: int


def initialize(
    world: World,
    name: str,
    inner: InnerOptimizer,
    options: Options,
    parameters: Tree,
    old: StateLayout,
    problem: str | None,
) -> Initialized:
    """Put the same parameters and state on all ranks, and plan who owns what.

    Args:
        name: of the optimizer, for errors.
        old: layout of an earlier call's state, which is kept where it fits; of nothing
            at the first call, which takes the state that is there.
        problem: why this rank can't be initialized, or None.
    """
    call, comm = f"{name}.init", world.control
    entries = agree_to_init(world, call, parameters, inner, options, problem)
    before = InnerSnapshot.of(inner)
    try:
        earlier = state.read(inner, old.shard)
        flat = share_parameters(world, call, parameters)
        assign_parameters(comm, call, inner, trainable(parameters))
        plan = plan_parameters(world, inner, options, entries, list(flat))
        assigned = find_assigned(comm, inner, plan.by_path)
        state.reset(inner, old.plan)  # that of parameters that are frozen now, too
        layout = make_state(comm, call, inner, plan, flat, options)
        if old.plan.entries:
            carried = carry_over(comm, old, earlier, layout)
        else:
            kept = take_assigned(comm, call, inner, layout, assigned, root_wins=True)
            carried = Carried(kept, ())
        fit_into(inner, carried.tree)
        state.share_scalars(inner, comm)
        put_mark(inner, layout)
    except BaseException:
        before.restore(inner)
        raise
    compiled = compile_update(world, name, inner, plan, options)
    pipelines = Pipelines(world, name, plan, inner, options, compiled=compiled)
    every = state_bytes_by_rank(comm, call, inner, layout)
    _report_begun_anew(world, call, plan, carried.begun_anew)
    frozen = frozen_bytes(parameters, plan)
    return Initialized(pipelines, layout, every, carried.begun_anew, frozen)


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
    call: str,
    parameters: Tree,
    inner: InnerOptimizer,
    options: Options,
    problem: str | None,
) -> Sequence[Entry]:
    """Refuse on all ranks where parameters or settings differ, or can't be trained."""
    transport = world.transport(options.transport, sharded=options.is_sharded)
    entries, tree_problem = read_entries(trainable(parameters))
    lines: list[str] = []
    try:
        if world.size > 1:  # alone there is nothing to compare, or to call
            lines = [
                f"mlxdist {version.__version__}",
                f"mlx {metadata.version('mlx')}",
                *options.lines(),
                f"transport in use = {transport.name}",
                *inner.settings(),
                *state.scalar_names(inner),
                *map(str, entries),
            ]
        problem = (
            problem
            or tree_problem
            or inner.wrapping.init_problem(
                sharded=options.is_sharded, model=isinstance(parameters, Module)
            )
        )
    except Exception as error:
        problem = problem or error_text(error)
    agree(world.control, call, fingerprint(lines), lambda: lines, problem=problem)
    if world.is_root:
        options.copies.masters.warn_if_unused(entries)
    return entries


def share_parameters(world: World, call: str, parameters: Tree) -> Flat:
    """Return rank 0's parameters on all ranks; a tree must have the same already.

    Raises:
        MismatchError: on all ranks, where a tree's values differ.
    """
    if isinstance(parameters, Module):
        share_module(world.control, call, parameters)
    elif not world.identical(parameters):
        raise MismatchError(
            "init(parameters): the ranks hold different values. Make them equal with "
            "`parameters = world.broadcast(parameters)` first, or call init(model), "
            "which does it"
        )
    return leaves_of(trainable(parameters))


def assign_parameters(
    comm: Collectives, call: str, inner: InnerOptimizer, parameters: Tree
) -> None:
    """Assign each parameter to its optimizer; refuse on all ranks if one can't."""
    agree_on_success(comm, call, partial(inner.assign, parameters))


def empty_layout(world: World, options: Options) -> StateLayout:
    """Return the layout of an optimizer that is not initialized."""
    plan = make_plan(
        (), world.size, strategy=options.strategy, bucket_size=options.bucket_size
    )
    return StateLayout(plan, world.rank)


def plan_parameters(
    world: World,
    inner: InnerOptimizer,
    options: Options,
    entries: Sequence[Entry],
    paths: Sequence[KeyPath],
) -> Plan:
    """Plan buckets and owners, in the order in which rank 0's model was written.

    Dicts of other ranks may have been filled in another order.
    """
    path_of = {entry.path.text: entry.path for entry in entries}
    names = json.dumps(list(map(str, paths))).encode()
    orders = world.control.all_gather_bytes(names)
    transport = world.transport(options.transport, sharded=options.is_sharded)
    return make_plan(
        entries,
        world.size,
        strategy=options.strategy,
        bucket_size=options.bucket_size,
        least_bucket=transport.least_bucket,
        costs=inner.costs(entries),
        order=[path_of[text] for text in json.loads(orders[0])],
        block=options.quantized.block,
    )


def state_bytes_by_rank(
    comm: Collectives, call: str, inner: InnerOptimizer, layout: StateLayout
) -> tuple[int, ...]:
    """Return every rank's number of bytes of state."""
    every = agree(comm, call, number=state.nbytes(state.read(inner, layout.shard)))
    return tuple(int(number) for number in every)


def frozen_bytes(parameters: Tree, plan: Plan) -> int:
    """Return the bytes of a model's arrays that are not trained."""
    arrays = all_parameters(parameters).values()
    return sum(int(array.nbytes) for array in arrays) - sum(
        entry.nbytes for entry in plan.entries
    )


def _report_begun_anew(
    world: World, call: str, plan: Plan, begun_anew: Sequence[str]
) -> None:
    """Print on rank 0 which parameters begin with new state, though others keep it."""
    if begun_anew:
        count = len(begun_anew)
        more = f" and {count - _LISTED} more" if count > _LISTED else ""
        world.print(
            f"mlxdist: {call}: new state for {count} of {len(plan.entries)} "
            f"parameters: {', '.join(begun_anew[:_LISTED])}{more}",
            file=sys.stderr,
        )
