"""State that is in the optimizer before `init`, or that a user has assigned since.

Every function here but `find_assigned` is called by all ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from ..arrays.device import have_values
from ..arrays.types import Array
from ..comm.agreement import (
    MismatchError,
    agree,
    agree_on_success,
    result_or_problem,
)
from ..comm.collectives import Collectives
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from . import masters, moments, state
from .assigned_kind import (
    ASSIGNED_WHILE_TRACING,
    REMEDY,
    AssignedSummary,
    Kind,
    copy_problem,
    differing_ranks,
    kind_of,
)
from .inner_optimizer import InnerOptimizer
from .shard_mark import mark_problem
from .state import StateTree
from .state_exchange import exchange_headers, exchange_shards, headers_of
from .state_layout import Parts, Specs, StateArray, StateLayout, kinds_of
from .state_setup import all_specs, shards_of
from .state_values import digest, is_number


class AssignedState(NamedTuple):
    """The state that is in the optimizer on this rank, before it is taken.

    Attributes:
        tree: of the model's parameters.
        summary: the same without the elements, for the other ranks.
        problem: why it can't be used, or None.
    """

    tree: StateTree
    summary: AssignedSummary
    problem: str | None = None


def find_assigned(
    comm: Collectives, inner: InnerOptimizer, paths: Collection[KeyPath]
) -> AssignedState:
    """Return the state that is in the optimizer."""
    tree = {path: keys for path, keys in state.read(inner, paths).items() if keys}
    headers = headers_of(_whole_parts(tree))
    surplus, missing = state.surplus(inner, paths), state.missing_scalars(inner)
    arrays = [v for keys in tree.values() for v in keys.values() if not is_number(v)]
    has_values, problem = result_or_problem(_evaluate, arrays if comm.size > 1 else [])
    if problem is None and not has_values:
        problem = ASSIGNED_WHILE_TRACING
    return AssignedState(
        tree, AssignedSummary(headers, surplus, missing, None), problem
    )


def _evaluate(arrays: list[Array]) -> bool:
    """Return whether arrays have values, which they lack while mx.compile traces."""
    if not have_values(arrays):
        return False
    mx.eval(arrays)
    return True


def take_assigned(
    comm: Collectives,
    call: str,
    inner: InnerOptimizer,
    layout: StateLayout,
    assigned: AssignedState,
    *,
    root_wins: bool,
) -> StateTree:
    """Return this rank's shard of a state that was assigned; empty without one.

    Args:
        layout: of the state that `init` made.
        root_wins: whether rank 0's full state counts where they differ.

    Raises:
        MismatchError: on all ranks, where it fits on none or only on some of them.
    """
    agree(comm, call, problem=assigned.problem)
    plan, specs = layout.plan, all_specs(comm, layout)
    tree = agree_on_success(comm, call, partial(_as_kept, assigned.tree, plan, specs))
    summary = assigned.summary._replace(
        headers=headers_of(_whole_parts(tree)), foreign=mark_problem(inner, layout)
    )
    kind = _agree_on_kind(comm, inner, layout, specs, summary)
    if kind == "none":
        if not root_wins and any(specs.values()):
            raise MismatchError(f"{call} refused: it has no moments.\n{REMEDY}")
        return {}
    parts = layout.located(tree) if kind == "shard" else _whole_parts(tree)
    if kind == "shard":
        _refuse_copies(comm, parts)
    elif not _are_equal(comm, tree, root_wins=root_wins) and comm.rank:
        parts = {}
    wants = shards_of(plan, specs)
    return exchange_shards(comm, parts, plan.entries, lambda _: wants)


def _as_kept(tree: StateTree, plan: Plan, specs: Specs) -> StateTree:
    """Return a state with the moments in 8 bits that are so here, and in no others."""
    kinds = {path: kinds_of(specs.get(path, {})) for path in tree}
    is_full = tree.keys() == plan.by_path.keys() and all(
        size == plan.by_path[path].size
        for path, values in tree.items()
        for size in moments.sizes(values)
    )
    kept: StateTree = {}
    for path, values in tree.items():
        entry = plan.by_path[path]
        is_slice = plan.strategy == "elements" and not is_full
        values = moments.widened(
            values, (-1,) if is_slice else entry.shape, without=kinds[path]
        )
        values = moments.quantized(values, kinds[path])
        kept[path] = masters.converted(values, entry, specs.get(path, {}))
    return kept


def _whole_parts(tree: StateTree) -> Parts:
    """Locate arrays that are whole, or to be compared by their own shapes."""
    return {
        path: {
            key: StateArray(value, (), 0, 1)
            if is_number(value)
            else StateArray(value, tuple(value.shape), 0, value.size)
            for key, value in values.items()
        }
        for path, values in tree.items()
    }


def _agree_on_kind(
    comm: Collectives,
    inner: InnerOptimizer,
    layout: StateLayout,
    specs: Specs,
    summary: AssignedSummary,
) -> Kind:
    plan = layout.plan
    headers = exchange_headers(comm, summary.headers, plan.entries)
    names = summary[1:]
    texts = comm.all_gather_bytes(json.dumps(names).encode())
    every = [
        AssignedSummary(tree, *json.loads(text))
        for tree, text in zip(headers, texts, strict=True)
    ]
    known = {p: inner.owner(p).is_mlx_class for p in plan.by_path}
    try:
        return kind_of(plan, specs, every, known)
    except ValueError as error:
        raise MismatchError(str(error)) from None


def _are_equal(comm: Collectives, tree: StateTree, *, root_wins: bool) -> bool:
    """Return whether all ranks have the same full state."""
    if comm.size == 1:
        return True
    digests = comm.all_gather_bytes(
        digest({f"{p} {k}": v for p, keys in tree.items() for k, v in keys.items()})
    )
    if len(set(digests)) > 1 and not root_wins:
        raise MismatchError(
            f"the full state that was assigned on {differing_ranks(digests)} is not "
            "that of rank 0. Read it on one rank and world.broadcast it to all, or "
            "call optimizer.load_state"
        )
    return len(set(digests)) == 1


def _refuse_copies(comm: Collectives, parts: Parts) -> None:
    digests = {
        f"{path}.{key}": digest({"": part.array}).hex()
        for path, keys in parts.items()
        for key, part in keys.items()
        if not is_number(part.array) and _is_distinctive(part.array, part)
    }
    every = comm.all_gather_bytes(json.dumps(digests).encode())
    problem = copy_problem([json.loads(text) for text in every])
    if problem is not None:
        raise MismatchError(problem)


def _is_distinctive(array: Array, part: StateArray) -> bool:
    """Whether a slice has elements that no other slice is expected to have.

    Rows that are all equal, as the gradients of `model(x).sum()` are, are not.
    """
    if (part.start, part.stop) == (0, math.prod(part.shape)):
        return False
    periods = {1, *(math.prod(part.shape[axis:]) for axis in range(len(part.shape)))}
    return not any(
        mx.array_equal(array[period:], array[:-period]).item()
        for period in periods
        if period < array.size
    )
