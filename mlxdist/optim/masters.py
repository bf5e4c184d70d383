"""Master weights of 16-bit parameters: float32, or 8 bits more than the parameter has.

The optimizer updates the master, and the parameter is the master rounded (Micikevicius
et al., "Mixed Precision Training", ICLR 2018).

A float32 master is kept whole. A parameter that is no longer its rounded master was
changed outside of `update`, and then it is the one that counts. Of a master of 24 bits
only the correction is kept, in one byte, and added to the parameter at each step: see
`arrays/float24.py`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Literal, NamedTuple

import mlx.core as mx

from ..arrays import float24
from ..arrays.dtypes import dtype_of
from ..arrays.types import Array, Dtype, Flat, Named
from ..layout.entries import ITEM_SIZES, Entry
from .state_values import Value
from .user_warning import warn_user

# In the optimizer's state of a parameter: one of them, as the option says.
KEY = "master"
CORRECTION = "correction"

BITS24: Literal["24bit"] = "24bit"

# mx.float32 or "24bit", or None for no masters. MLX has no types of its dtypes.
Option = Dtype


def check_option(option: Option) -> None:
    """Raise ValueError where an option is not valid."""
    is_text = isinstance(option, str)
    if option is None or (option == BITS24 if is_text else option == mx.float32):
        return
    raise ValueError(
        f'master_dtype is {option!r}; it must be mx.float32, "24bit" or None'
    )


def converted(
    values: Mapping[str, Value], entry: Entry, wanted: Container[str]
) -> dict[str, Value]:
    """Return a state with a float32 master as the correction that is wanted instead.

    The parameter is taken for the rounded master. The way back needs the parameter.
    """
    result = dict(values)
    if KEY in result and CORRECTION in wanted and CORRECTION not in result:
        master = result.pop(KEY)
        rounded = master.astype(dtype_of(entry.dtype))
        result[CORRECTION] = float24.correction(rounded, master)
    return result


class MasterWeights(NamedTuple):
    """Which masters are kept, and what a step does to them."""

    option: Option = None

    @property
    def dtype(self) -> Dtype:
        """The dtype in which a parameter with a master is updated; None without."""
        return None if self.option is None else mx.float32

    @property
    def key(self) -> str:
        """The key of what is kept of a master."""
        return CORRECTION if self.option == BITS24 else KEY

    def update_dtype(self, dtype: Dtype) -> Dtype:
        """Return the dtype in which a parameter of `dtype` is updated."""
        if self.dtype is not None and dtype.size < self.dtype.size:
            return self.dtype
        return dtype

    def applies_to(self, parameter: Array) -> bool:
        return bool(self.update_dtype(parameter.dtype) != parameter.dtype)

    def warn_if_unused(self, entries: Sequence[Entry]) -> None:
        """Warn the user where no parameter gets a master."""
        if self.dtype is None or any(
            ITEM_SIZES[entry.dtype] < self.dtype.size for entry in entries
        ):
            return
        option = '"24bit"' if self.option == BITS24 else "mx.float32"
        warn_user(
            f"master_dtype={option} has no effect: the model has no 16-bit parameters "
            "to train. Leave it out, or call model.set_dtype(mx.bfloat16) before init"
        )

    def widened(self, parameters: Flat) -> Flat:
        """Return parameters as the optimizer sees them when it makes its state."""
        if self.dtype is None:
            return parameters
        return {p: a.astype(self.update_dtype(a.dtype)) for p, a in parameters.items()}

    def initial(self, parameter: Array) -> Array:
        """Return what is kept of the master of a parameter that has one."""
        if self.key == CORRECTION:
            return mx.zeros(parameter.shape, mx.int8)
        return parameter.astype(self.dtype)

    def current(self, parameter: Array, state: Named) -> Array:
        """Return the array that the optimizer updates: a master, or the parameter."""
        if not self.applies_to(parameter):
            return parameter
        kept = state.get(self.key)
        if kept is None:
            return parameter.astype(self.dtype)
        if self.key == CORRECTION:
            return float24.join(parameter, kept)
        is_rounded = kept.astype(parameter.dtype) == parameter
        return mx.where(is_rounded, kept, parameter.astype(self.dtype))

    def settle(
        self, stepped: Array, parameter: Array, state: Named, step: Array
    ) -> Array:
        """Keep the master after a step, and return the new parameter.

        Args:
            step: its number, by which masters of 24 bits are rounded.
        """
        if not self.applies_to(parameter):
            return stepped.astype(parameter.dtype)
        if self.key == CORRECTION:
            new, state[CORRECTION] = float24.split(stepped, parameter.dtype, step)
            return new
        state[KEY] = stepped
        return stepped.astype(parameter.dtype)
