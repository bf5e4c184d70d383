"""State in 8 bits: of which optimizers and parameters, and how each moment is kept.

In the optimizer's state of such a parameter a moment is a dict of two arrays,
{"codes": (B, 64), "scales": (B,)}, B = elements / 64; see `arrays/blockwise.py`. With
Adam that is 2.125 bytes a parameter instead of 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mlx.optimizers as optim

from ..arrays.blockwise import Kind, zeros
from ..arrays.types import Tree
from ..layout.entries import Entry
from ..layout.state_blocks import BLOCK, is_quantized
from .hyperparameters import Optimizer
from .overrides import is_changed_object, replaces

CODES, SCALES = "codes", "scales"  # keys in a moment's dict

# How each moment of MLX's optimizers is kept. A velocity has a sign; Adamax's v is a
# largest absolute value, and not a square.
MOMENTS: Mapping[type[Optimizer], Mapping[str, Kind]] = {
    optim.SGD: {"v": "signed"},
    optim.RMSprop: {"v": "root"},
    optim.Adagrad: {"v": "root"},
    optim.AdaDelta: {"v": "root", "u": "root"},
    optim.Adam: {"m": "signed", "v": "root"},
    optim.AdamW: {"m": "signed", "v": "root"},
    optim.Adamax: {"m": "signed", "v": "signed"},
    optim.Lion: {"m": "signed"},
}


def can_be_quantized(optimizer: Optimizer) -> bool:
    """Return whether an optimizer is of a class whose moments are known."""
    return type(optimizer) in MOMENTS and not is_changed_object(optimizer)


def _is_int8(option: object) -> bool:
    return isinstance(option, str) and option == "int8"


class QuantizedState(NamedTuple):
    """Which parameters have their state in 8 bits.

    Attributes:
        dtype: "int8", or None for none.
        float32_state: texts; a parameter whose dotted path contains one of them keeps
            its state as MLX makes it.
    """

    dtype: str | None = None
    float32_state: tuple[str, ...] = ()

    @property
    def block(self) -> int:
        """Elements that stay together on a rank: 64, or 1 where none is in 8 bits."""
        return 1 if self.dtype is None else BLOCK

    def applies_to(self, entry: Entry) -> bool:
        """Whether a parameter's state is in 8 bits, by its shape and its name."""
        return self.dtype is not None and is_quantized(entry, self.float32_state)

    def moments(self, optimizer: Optimizer, entry: Entry) -> Mapping[str, Kind]:
        """Return the moments of a parameter that are in 8 bits, and how they are."""
        if self.applies_to(entry) and can_be_quantized(optimizer):
            return MOMENTS[type(optimizer)]
        return {}

    def pack(self, optimizer: Optimizer, entry: Entry, state: Tree) -> None:
        """Replace the zeros that an optimizer has made by zeros in 8 bits.

        MLX's are lazy: float32 moments are never in memory.
        """
        for moment, kind in self.moments(optimizer, entry).items():
            codes, scales = zeros(state[moment].size, kind)
            state[moment] = {CODES: codes, SCALES: scales}

    def option_problem(self) -> str | None:
        """Return why the options are invalid, or None."""
        if self.dtype is not None and not _is_int8(self.dtype):
            return f'state_dtype is {self.dtype!r}; it must be "int8" or None'
        names = self.float32_state
        if not isinstance(names, tuple) or not all(
            isinstance(name, str) and name for name in names
        ):
            return (
                f"float32_state is {names!r}; it must be a tuple of parts of names of "
                'parameters, such as ("embed", "lm_head")'
            )
        return None

    def optimizers_problem(self, optimizers: Sequence[Optimizer]) -> str | None:
        """Return why none of some optimizers can have its state in 8 bits, or None."""
        if self.dtype is None:
            return None
        whole = [each for each in optimizers if replaces(each, "apply_gradients")]
        if any(map(can_be_quantized, optimizers)) and not whole:
            return None
        known = ", ".join(sorted(each.__name__ for each in MOMENTS))
        found = ", ".join(type(each).__name__ for each in optimizers)
        return (
            f'state_dtype="int8" keeps the moments of {known} in 8 bits, of MLX\'s own '
            f"classes alone, and the optimizer is {found}; leave state_dtype out"
        )


NOT_QUANTIZED = QuantizedState()
