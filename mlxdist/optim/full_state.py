"""The full state: gathered from all ranks, and loaded on all of them."""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays.dtypes import dtype_name
from ..arrays.types import Named, Tree
from ..comm.agreement import agree
from ..comm.collectives import Collectives
from ..layout.paths import KeyPath
from ..layout.state_blocks import BLOCK
from . import masters, moments, state
from .inner_optimizer import InnerOptimizer
from .state import StateTree
from .state_exchange import exchange_shards, whole
from .state_layout import COPIES, StateLayout
from .state_setup import fit_into
from .state_values import Value, as_state, digest, is_number


def gather_full_state(
    comm: Collectives, call: str, inner: InnerOptimizer, layout: StateLayout
) -> Tree:
    """Return the full state in MLX's layout, on every rank. Called by all of them.

    Sends each rank's own state to all others, an array at a time. Moments in 8 bits are
    sent as they are, and become float32 then.
    """
    agree(comm, call, layout.plan.fingerprint)
    tree = state.read(inner, layout.shard)
    parts = layout.located(tree)
    full = exchange_shards(comm, parts, layout.plan.entries, lambda _: whole)
    for path in full:
        full[path] = moments.widened(full[path], layout.plan.by_path[path].shape)
    return state.to_mlx(inner, full)


def load_full_state(
    comm: Collectives,
    call: str,
    inner: InnerOptimizer,
    layout: StateLayout,
    full: Tree,
    *,
    any_dtype: bool,
) -> None:
    """Write this rank's shard of a full state in MLX's layout, or refuse it.

    Args:
        any_dtype: whether arrays are converted to the dtypes of this optimizer's.

    Raises:
        MismatchError: on all ranks, and nothing is loaded, where it lacks a parameter,
            its shapes or dtypes are others, or the ranks were given different states.
    """
    wanted = state.read(inner, layout.shard)
    shard: StateTree = {}
    scalars: list[Named] = []
    checksum = 0
    try:
        full = as_state(full)
        flat = state.from_mlx(inner, full, layout.plan.by_path)
        shard = {p: _shard_of(layout, p, flat[p]) for p in layout.shard if p in flat}
        scalars = state.scalars_from_mlx(inner, full)
        problem = _moment_problem(layout, flat)
        problem = problem or misfit(wanted, shard, any_dtype=any_dtype)
        checksum = _checksum(flat, scalars)
    except Exception as error:  # of any kind, since the other ranks wait for it
        problem = f"not a state of {type(inner.optimizer).__name__}: {error!r}"
    agree(
        comm,
        call,
        checksum,
        lambda: [f"a state with sha256 {checksum:016x}..."],
        problem=problem,
        remedy="Read the state on one rank and world.broadcast it to all.",
    )
    fit_into(inner, shard)
    state.write_scalars(inner, scalars)


def _shard_of(
    layout: StateLayout, path: KeyPath, values: dict[str, Value]
) -> dict[str, Value]:
    """Return this rank's part of a parameter's full state, as it is kept here."""
    kinds, entry = layout.kinds(path), layout.plan.by_path[path]
    values = moments.widened(values, entry.shape, without=kinds)
    cut = {key: layout.cut(path, key, value) for key, value in values.items()}
    return masters.converted(moments.quantized(cut, kinds), entry, layout.specs[path])


def _moment_problem(layout: StateLayout, flat: StateTree) -> str | None:
    """Return which moment that is in 8 bits here can't be made of a state, or None."""
    for path in layout.shard:
        values, entry = flat.get(path, {}), layout.plan.by_path[path]
        for moment in layout.kinds(path):
            pair = moments.pair_of(moment)
            codes, scales = values.get(pair.codes), values.get(pair.scales)
            if moments.is_pair(codes, scales, entry.size):
                continue
            wanted = f"wanted float32{list(entry.shape)}, or its codes and scales"
            if codes is not None or scales is not None:
                blocks = entry.size // BLOCK
                return (
                    f"the state has no codes and scales of {blocks} blocks for "
                    f"{path}.{moment}, {wanted}"
                )
            if moment not in values:
                return f"the state has nothing for {path}.{moment}, {wanted}"
            value = values[moment]
            if is_number(value) or value.shape != entry.shape:
                return f"the state of {path}.{moment} is {_text(value)}, {wanted}"
    return None


def _checksum(tree: StateTree, scalars: Sequence[Named]) -> int:
    values = {f"{p} {k}": v for p, keys in tree.items() for k, v in keys.items()}
    for index, named in enumerate(scalars):
        values |= {f"{index} {name}": value for name, value in named.items()}
    return int.from_bytes(digest(values)[:8], "little")


def misfit(wanted: StateTree, given: StateTree, *, any_dtype: bool) -> str | None:
    """Return how a state differs from what the optimizer holds, or None.

    Copies of the weights may be missing: they follow from the parameters.
    """
    for path, values in wanted.items():
        given_values = given.get(path, {})
        for key, value in values.items():
            if key not in given_values:
                if key in COPIES:
                    continue
                return f"the state has nothing for {path}.{key}, wanted {_text(value)}"
            has, want = _text(given_values[key]), _text(value)
            if any_dtype:
                has, want = has[has.find("[") :], want[want.find("[") :]
            if has != want and not is_number(value):
                return (
                    f"the state of {path}.{key} is {_text(given_values[key])}, wanted "
                    f"{_text(value)}"
                )
    return None


def _text(value: Value) -> str:
    if is_number(value):
        return f"the number {value!r}"
    return f"{dtype_name(value.dtype)}{list(value.shape)}"
