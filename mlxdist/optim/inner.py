"""What mlxdist has to know of the optimizer that it wraps.

Whether it may be cut into slices, which of several optimizers a parameter belongs to,
and which settings have to be the same on all ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..arrays.types import Flat
from ..layout.entries import Entry
from ..layout.sharding import Strategy

# Those whose update of one element depends on that element alone, so that a flat slice
# gives the same bits as the tensor. Subclasses are not trusted to be: they may declare
# it with a class attribute `elementwise = True`.
ELEMENTWISE = frozenset(
    {
        optim.SGD,
        optim.RMSprop,
        optim.Adagrad,
        optim.AdaDelta,
        optim.Adam,
        optim.AdamW,
        optim.Adamax,
        optim.Lion,
    }
)
_SAMPLED_STEPS = (0, 1, 10, 100, 1000, 10000)


def leaves(optimizer: Any) -> list[Any]:
    """The optimizers that hold state: those inside a MultiOptimizer, or itself."""
    if isinstance(optimizer, optim.MultiOptimizer):
        return [leaf for inner in optimizer.optimizers for leaf in leaves(inner)]
    return [optimizer]


def is_elementwise(optimizer: Any) -> bool:
    """Whether all of an optimizer may work on slices."""
    return all(
        type(leaf) in ELEMENTWISE or vars(type(leaf)).get("elementwise", False)
        for leaf in leaves(optimizer)
    )


def choose_strategy(optimizer: Any, shard: bool | str) -> Strategy:
    """The strategy that a `shard=` stands for.

    Raises:
        ValueError: on another value, and on "elements" for an optimizer that needs
            whole tensors.
    """
    if shard is False:
        return "replicated"
    elementwise = is_elementwise(optimizer)
    if shard is True:
        return "elements" if elementwise else "tensors"
    if shard == "tensors":
        return "tensors"
    if shard == "elements":
        if elementwise:
            return "elements"
        names = [type(x).__name__ for x in leaves(optimizer) if not is_elementwise(x)]
        raise ValueError(
            f'shard="elements" cuts tensors into slices, and {", ".join(names)} may '
            'need them whole; use shard="tensors" or shard=True. If the class updates '
            "each element by itself, say so with a class attribute: elementwise = True"
        )
    raise ValueError(
        f'shard is {shard!r}; it must be False, True, "elements" or "tensors"'
    )


class _By:
    """A MultiOptimizer's filter, resolved: looks the path up, whatever its shape."""

    def __init__(self, paths: frozenset[str]):
        self.paths = paths

    def __call__(self, path: str, _: Any) -> bool:
        return path in self.paths


def resolve_filters(optimizer: Any, parameters: Flat) -> Any:
    """The optimizer with filters that answer as they do for the full parameters.

    A filter such as `lambda path, x: x.ndim == 2` would see a 1-D slice otherwise.
    The copy shares its optimizers, and so its state, with the original.
    """
    if not isinstance(optimizer, optim.MultiOptimizer):
        return optimizer
    resolved = copy.copy(optimizer)
    left = dict(parameters)
    resolved.filters, resolved.optimizers = [], []
    for inner, wants in zip(optimizer.optimizers, optimizer.filters, strict=True):
        taken = {path: array for path, array in left.items() if wants(path, array)}
        left = {path: array for path, array in left.items() if path not in taken}
        resolved.filters.append(_By(frozenset(taken)))
        resolved.optimizers.append(resolve_filters(inner, taken))
    return resolved


def owner_of(optimizer: Any, path: str) -> Any:
    """The optimizer that updates a path, of a resolved one."""
    if not isinstance(optimizer, optim.MultiOptimizer):
        return optimizer
    for inner, wants in zip(optimizer.optimizers, optimizer.filters, strict=True):
        if wants(path, None):
            return owner_of(inner, path)
    raise ValueError(f"no optimizer of the MultiOptimizer takes {path}")


def settings(optimizer: Any) -> list[str]:
    """Class and hyperparameters in words, to be compared across ranks."""
    if isinstance(optimizer, optim.MultiOptimizer):
        inner = [settings(one) for one in optimizer.optimizers]
        return [
            f"optimizer {i}: {line}" for i, part in enumerate(inner) for line in part
        ]
    kind = type(optimizer)
    lines = [f"{kind.__module__}.{kind.__qualname__}"]
    for name, value in sorted(vars(optimizer).items()):
        if not name.startswith("_"):
            lines.append(f"{name} = {_told(value)}")
    schedules = getattr(optimizer, "_schedulers", {})
    lines += [f"{name} = {_told(value)}" for name, value in sorted(schedules.items())]
    rate = optimizer.state.get("learning_rate")
    if rate is not None and "learning_rate" not in schedules:
        lines.append(f"learning_rate = {_told(rate)}")
    return lines


def _told(value: Any) -> str:
    if isinstance(value, mx.array):
        return str(value.tolist())
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name} {_samples(value)}"
    if isinstance(value, list | tuple):
        return str([_told(item) for item in value])
    if isinstance(value, bool | int | float | str | type(None)):
        return repr(value)
    return type(value).__qualname__


def _samples(schedule: Any) -> str:
    """A schedule's values at some steps; closures can't be compared otherwise."""
    try:
        values = [float(schedule(mx.array(step))) for step in _SAMPLED_STEPS]
    except Exception:
        return "(not a schedule)"
    return str([f"{value:.9g}" for value in values])


def roots(entries: Sequence[Entry]) -> set[str]:
    """The first parts of all paths: the keys of a state that hold the tree."""
    return {entry.path.partition(".")[0] for entry in entries}
