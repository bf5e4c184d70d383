"""Hyperparameters of MLX optimizers: as text, and which a user has changed.

A user may change one between steps, on the optimizer or in place. A compiled update has
the values with which it was compiled, and all ranks must have the same ones. So they
are looked at before each step, and remembered after it: what an optimizer changes in
itself during a step, such as a counter, is no change of the user's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..arrays.types import Array

_SAMPLED_STEPS = (0, 1, 10, 100, 1000, 10000)
_NUMBERS = frozenset({bool, int, float, complex, str, type(None)})
_LONGEST = 16  # items of a list, dict or array that is compared by value
_MISSING = object()

Optimizer = Any  # an mlx.optimizers.Optimizer
Snapshot = dict[str, object]


class Hyperparameters:
    """The hyperparameters of some optimizers, compared with those of the last step.

    Args:
        optimizers: a prefix for lines of text, and the optimizer.

    Attributes:
        have_changed: whether any has, since the last step, when `look` was called.
    """

    def __init__(self, optimizers: Iterable[tuple[str, Optimizer]]):
        self._optimizers = list(optimizers)
        self.have_changed = False
        self.remember()

    def remember(self) -> None:
        """Take the present values as those of the last step."""
        self._before = self._now = self._snapshots()

    def look(self) -> None:
        """Find out whether any has changed since the last step."""
        self._now = self._snapshots()
        self.have_changed = not all(map(_same, self._now, self._before))

    def changes(self) -> list[str]:
        """Return what `look` has found, as `name = value`."""
        return [
            f"{prefix}{line}"
            for (prefix, _), old, new in zip(
                self._optimizers, self._before, self._now, strict=True
            )
            for line in (_differences(old, new) if self.have_changed else ())
        ]

    def _snapshots(self) -> list[Snapshot]:
        return [_snapshot(optimizer) for _, optimizer in self._optimizers]


def settings(optimizer: Optimizer) -> list[str]:
    """Return all hyperparameters as lines of text, to be compared across ranks."""
    public = {k: v for k, v in vars(optimizer).items() if not k.startswith("_")}
    lines = [f"{name} = {_text(value)}" for name, value in sorted(public.items())]
    schedules = getattr(optimizer, "_schedulers", {})
    lines += [f"{name} = {_text(value)}" for name, value in sorted(schedules.items())]
    rate = optimizer.state.get("learning_rate")
    if rate is not None and "learning_rate" not in schedules:
        lines.append(f"learning_rate = {_text(rate)}")
    return lines


def has_arrays(optimizer: Optimizer) -> bool:
    """Return whether a hyperparameter is an array, which can change in place."""
    return any(
        isinstance(value, mx.array | np.ndarray)
        for name, value in vars(optimizer).items()
        if not name.startswith("_")
    )


def _snapshot(optimizer: Optimizer) -> Snapshot:
    """The hyperparameters by name, and the schedules; lists by what is in them."""
    return {"apply_single": type(optimizer).apply_single} | {
        name: value if type(value) in _NUMBERS else _frozen(value)
        for name, value in vars(optimizer).items()
        if name[0] != "_" or name == "_schedulers"
    }


def _frozen(value: object) -> object:
    """A copy of a short list or dict, which a user may change in place."""
    if isinstance(value, list | tuple) and len(value) <= _LONGEST:
        return tuple(map(_frozen, value))
    if isinstance(value, dict) and len(value) <= _LONGEST:
        return {key: _frozen(item) for key, item in value.items()}
    return value


def _same(one: object, other: object) -> bool:
    """Whether two snapshots are equal; objects are the same one."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _same(value, other[key]) for key, value in one.items()
        )
    return type(one) in _NUMBERS and one == other


def _differences(before: Snapshot, now: Snapshot) -> list[str]:
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, _MISSING), now.get(name, _MISSING)
        if _same(old, new):
            continue
        if name == "_schedulers" and isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new)
        else:
            lines.append(f"{name} = {'deleted' if new is _MISSING else _text(new)}")
    return lines


def _text(value: object) -> str:
    if isinstance(value, mx.array) and not device.start_evaluation([value]):
        return "traced"
    if isinstance(value, mx.array | np.ndarray):
        small = value.size <= _LONGEST
        return str(value.tolist()) if small else f"{value.dtype}{list(value.shape)}"
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name} {_samples(value)}"
    if isinstance(value, list | tuple) and len(value) <= _LONGEST:
        return str([_text(item) for item in value])
    if isinstance(value, dict) and len(value) <= _LONGEST:
        return str({key: _text(item) for key, item in value.items()})
    if isinstance(value, bool | int | float | str | type(None)):
        return repr(value)
    return type(value).__qualname__


def _samples(schedule: Callable[[Array], Array]) -> str:
    """A schedule's values at some steps; closures can't be compared otherwise.

    An object that counts its calls must not count these: a copy of it is called.
    """
    try:
        schedule = copy.copy(schedule)  # a function remains the same
        values = [float(schedule(mx.array(step))) for step in _SAMPLED_STEPS]
    except Exception:
        return "(not a schedule)"
    return str([f"{value:.9g}" for value in values])
