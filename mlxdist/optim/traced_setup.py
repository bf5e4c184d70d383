"""Initialization while `mx.compile` traces, where arrays have no values yet.

Nothing can be sent then. The ranks compare paths, shapes, dtypes and settings, and each
compiled step takes rank 0's parameters. A rank may trace again alone, so the rest
happens on this rank.
"""

from __future__ import annotations

import mlx.core as mx

from ..arrays import device
from ..arrays.trees import leaves_of, trainable
from ..arrays.types import Tree
from ..comm.agreement import agree
from ..layout.sharding import Plan
from ..world.world import World
from . import setup, state
from .assigned_kind import ASSIGNED_WHILE_TRACING, shapes_of_shard
from .inner_optimizer import InnerOptimizer
from .inner_snapshot import InnerSnapshot
from .options import Options
from .pipeline import Pipelines
from .setup import Initialized
from .state_layout import StateLayout
from .state_setup import make_state
from .user_warning import warn_user

_WARNING = (
    "optimizer.init(model) was not called before mx.compile traced. Parameters have no "
    "values while it traces, so each step sends rank 0's to all ranks, and frozen "
    "parameters and buffers are not sent at all. Call optimizer.init(model) before the "
    "first step: it sends all of them once"
)


def is_traced(inner: InnerOptimizer, tree: Tree) -> bool:
    """Return whether a tree or the optimizer's own scalars have no values yet.

    Raises:
        RuntimeError: where one of them can't be evaluated. The others can be used.
    """
    leaves = [*leaves_of(trainable(tree)).values(), *inner.scalars()]
    arrays = [leaf for leaf in leaves if isinstance(leaf, mx.array)]
    return not device.have_values(arrays)


def initialize(
    world: World,
    name: str,
    inner: InnerOptimizer,
    options: Options,
    parameters: Tree,
    old: StateLayout,
    problem: str | None,
) -> Initialized:
    """Do what `setup.initialize` does, for traced parameters and the first time."""
    call, comm = f"{name}.init", world.control
    entries = setup.agree_to_init(world, call, parameters, inner, options, problem)
    before = InnerSnapshot.of(inner)
    try:
        tree = trainable(parameters)
        setup.assign_parameters(comm, call, inner, tree)
        flat = leaves_of(tree)
        has_state = any(state.read(inner, flat).values())
        agree(comm, call, problem=ASSIGNED_WHILE_TRACING if has_state else None)
        plan = setup.plan_parameters(world, inner, options, entries, list(flat))
        layout = make_state(comm, call, inner, plan, flat, options)
    except BaseException:
        before.restore(inner)
        raise
    pipelines = Pipelines(
        world, name, plan, inner, options, compiled=False, from_root=True
    )
    every = setup.state_bytes_by_rank(comm, call, inner, layout)
    if world.size > 1 and world.is_root:
        warn_user(_WARNING)
    frozen = setup.frozen_bytes(parameters, plan)
    return Initialized(pipelines, layout, every, (), frozen)


def is_repeated(inner: InnerOptimizer, plan: Plan, parameters: Tree) -> bool:
    """Return whether `init` is called again while `mx.compile` traces.

    Nothing is to be done then: state stays as it is.

    Raises:
        ValueError: where the plan is for other parameters.
    """
    if not is_traced(inner, parameters):
        return False
    if plan.entries != setup.read_entries(trainable(parameters))[0]:
        raise ValueError(
            "init() with other parameters than before, while mx.compile traces: state "
            "can't be moved there. Call optimizer.init(model) outside of it"
        )
    return True


def settle(inner: InnerOptimizer, layout: StateLayout) -> None:
    """Take the state that a compiled function has assigned: that of its arguments.

    Raises:
        ValueError: where it is not this rank's `optimizer.state`.
    """
    tree = state.read(inner, layout.shard)
    for path, keys in shapes_of_shard(layout.plan, layout.specs, layout.rank).items():
        for key, shape in keys.items():
            values = tree.get(path, {})
            if key not in values or getattr(values[key], "shape", ()) != shape:
                raise ValueError(
                    f"the state that was assigned while mx.compile traces has not this "
                    f"rank's part of {path}.{key}: pass in its own optimizer.state, or "
                    "call optimizer.init(model) before, which cuts a full state"
                )
    for leaf in inner.leaves:
        leaf.optimizer._initialized = True
