"""State made by `init`, carried over to a new plan, or taken from a user.

Every function here is called by all ranks. Whether a parameter keeps its state depends
on its full shape and on what all ranks have, so that all of them decide the same.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx

from ..arrays.trees import cut_all
from ..arrays.types import Flat
from ..comm.agreement import agree_on_success
from ..comm.collectives import Collectives
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from . import state
from .inner_optimizer import InnerOptimizer
from .masters import CORRECTION
from .options import Options
from .state import StateTree
from .state_exchange import (
    Header,
    Headers,
    Want,
    Wants,
    all_gather_by_path,
    exchange_shards,
    whole,
)
from .state_layout import (
    COPIES,
    Cut,
    Spec,
    Specs,
    StateLayout,
    cut_shape,
    cut_span,
    record,
)
from .state_values import Value, is_number, like


class Carried(NamedTuple):
    """State from before `init`, as far as it fits.

    Attributes:
        tree: this rank's part of it under the new plan.
        begun_anew: the other parameters, and why.
    """

    tree: StateTree
    begun_anew: tuple[str, ...]


def make_state(
    comm: Collectives,
    call: str,
    inner: InnerOptimizer,
    plan: Plan,
    parameters: Flat,
    options: Options,
) -> StateLayout:
    """Make new state for this rank's shard, and record its layout.

    Raises:
        MismatchError: on all ranks, where the optimizer raised on one of them, which
            has that error as its cause.
    """

    copies, quantized = options.copies, options.quantized

    def make() -> StateLayout:
        state.reset(inner, plan)
        shard = cut_all(parameters, plan.pieces(comm.rank), plan)
        pieces = copies.masters.widened(shard)
        inner.init(pieces)
        for path, values in state.dicts(inner, shard).items():
            quantized.pack(inner.owner(path).optimizer, plan.by_path[path], values)
            copies.add(path, shard[path], values)
        tree = state.read(inner, shard)
        return record(inner, plan, comm.rank, pieces, tree)

    return agree_on_success(comm, call, make)


def fit_into(inner: InnerOptimizer, tree: StateTree) -> None:
    """Write state from elsewhere, in the dtypes of what it replaces.

    Copies of weights that are not kept any more are left out.
    """
    for path, fresh in state.read(inner, tree).items():
        fitted = {
            key: _as_before(fresh[key], value) if key in fresh else value
            for key, value in tree[path].items()
            if key in fresh or key not in COPIES
        }
        state.write(inner, {path: fitted})


def _as_before(before: Value, value: Value) -> Value:
    """Return a value in the dtype, or as the kind of number, of the one before."""
    if is_number(before):
        return value if is_number(value) else like(before, value)
    if is_number(value):
        return mx.array(value, before.dtype)
    return value if value.dtype == before.dtype else value.astype(before.dtype)


# -- state from before


def carry_over(
    comm: Collectives,
    old: StateLayout,
    tree: StateTree,
    layout: StateLayout,
) -> Carried:
    """Return this rank's part of an earlier plan's state, path by path.

    Only elements that get another owner are sent, an array at a time.

    Args:
        tree: this rank's state under the old layout; emptied.
    """
    plan = layout.plan
    stayed = [
        entry
        for entry in plan.entries
        if entry.path in old.plan.by_path
        and old.plan.by_path[entry.path].shape == entry.shape
        and old.owners[entry.path] == layout.owners[entry.path]
    ]
    for entry in stayed:
        if old.plan.by_path[entry.path].dtype != entry.dtype:  # of another last place
            tree.get(entry.path, {}).pop(CORRECTION, None)
    parts = old.located({e.path: tree[e.path] for e in stayed if e.path in tree})
    tree.clear()
    specs = all_specs(comm, layout)
    anew: dict[KeyPath, str] = {}

    def wants(every: Sequence[Headers]) -> Wants:
        for entry in plan.entries:
            headers = [tree.get(entry.path, {}) for tree in every]
            if not _fits(specs.get(entry.path, {}), headers):
                anew[entry.path] = _reason(entry, old.plan)
        return shards_of(plan, specs, without=anew)

    carried = exchange_shards(comm, parts, plan.entries, wants)
    return Carried(carried, tuple(anew.values()))


def _fits(specs: Mapping[str, Spec], every: Sequence[Mapping[str, Header]]) -> bool:
    """Whether all that `init` makes for a parameter is there, in the same shapes."""
    for key, spec in specs.items():
        header = next((headers[key] for headers in every if key in headers), None)
        if key in COPIES:
            continue
        if header is None or header.shape != spec.shape:
            return False
        if bool(header.dtype) != bool(spec.dtype):
            return False
    return True


def _reason(entry: Entry, before: Plan) -> str:
    old = before.by_path.get(entry.path)
    if old is None:
        return f"{entry} (new)"
    if old.shape != entry.shape:
        return f"{entry} ({list(old.shape)} before)"
    return f"{entry} (its state before is of another optimizer)"


def all_specs(comm: Collectives, layout: StateLayout) -> Specs:
    """Return what `init` made for all parameters, from the rank that made it."""
    specs: Specs = {}
    for tree in all_gather_by_path(comm, layout.specs, layout.plan.entries):
        for path, keys in tree.items():
            known = specs.setdefault(path, {})  # empty where state is made at a step
            for key, (dtype, shape, cut) in keys.items():
                known.setdefault(key, Spec(dtype, tuple(shape), cut))
    return specs


def shards_of(plan: Plan, specs: Specs, without: Container[KeyPath] = ()) -> Wants:
    """Return what each rank is to have under a plan.

    Args:
        without: paths of which no rank is to have anything.
    """
    shards = [plan.shard(rank) for rank in range(plan.ranks)]

    def cut_of(path: KeyPath, key: str, header: Header) -> Cut:
        if plan.strategy != "elements":
            return ""
        spec = specs.get(path, {}).get(key)
        if spec is not None:
            return spec.cut
        return "elements" if header.shape == plan.by_path[path].shape else ""

    def want(rank: int, path: KeyPath, key: str, header: Header) -> Want | None:
        if path in without or path not in shards[rank]:
            return None
        start, stop = shards[rank][path]
        cut = cut_of(path, key, header)
        if not cut:
            return whole(rank, path, key, header)
        return Want(*cut_span(cut, start, stop), cut_shape(cut, stop - start))

    return want
