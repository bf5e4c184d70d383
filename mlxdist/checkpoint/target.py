"""Where one saved array goes on this rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..arrays.types import Array
from ..optim.state_values import Value
from .manifest import Identity, SavedArray

Span = tuple[int, int]  # elements [start, stop)
Loaded = Value | Sequence[Array]  # what replaces a value, or several
Put = Callable[[Loaded], None]


def _as_it_is(array: Array) -> Loaded:
    return array


class Target(NamedTuple):
    """Elements [start, stop) of a saved array, and where they go on this rank.

    Attributes:
        shape: of the array that `convert` gets.
        put: replaces what is there. Fails on nothing that `convert` returned.
        convert: returns what to put, of the array and of those that are read with it,
            which are flat. Raises an error of any kind if it can't.
        others: elements of the arrays that are read with it.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    put: Put
    convert: Callable[..., Loaded] = _as_it_is
    others: tuple[Span, ...] = ()


def _drop(value: Loaded) -> None:
    return


NOTHING = Target(0, 0, (0,), _drop)  # of an array of which this rank needs nothing

# Of arrays that were not saved, too: their targets make a value of nothing.
Targets = dict[Identity, Target]


def mismatch(saved: SavedArray | None, wanted: str, what: str) -> str | None:
    """Return how a saved array differs in dtype and shape from this rank's.

    Args:
        wanted: its dtype and shape, such as "float32[3, 4]".
    """
    if saved is None:
        return f"it has no {what}, wanted {wanted}"
    found = f"{saved.dtype}{list(saved.shape)}"
    return None if found == wanted else f"its {what} is {found}, wanted {wanted}"
