"""Float32 master weights of 16-bit parameters.

The optimizer updates the master, and the parameter is the master rounded (Micikevicius
et al., "Mixed Precision Training", ICLR 2018). A parameter that is no longer its
rounded master was changed outside of `update`, and then it is the one that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from ..arrays.types import Array, Dtype, Flat, Named
from ..layout.entries import ITEM_SIZES, Entry
from .user_warning import warn_user

KEY = "master"  # in the optimizer's state of a parameter


class MasterWeights(NamedTuple):
    """Masters of a dtype, for parameters of fewer bytes; None for no masters."""

    dtype: Dtype = None

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
        warn_user(
            "master_dtype=mx.float32 has no effect: the model has no 16-bit parameters "
            "to train. Leave it out, or call model.set_dtype(mx.bfloat16) before init"
        )

    def widened(self, parameters: Flat) -> Flat:
        """Return parameters as the optimizer sees them when it makes its state."""
        if self.dtype is None:
            return parameters
        return {p: a.astype(self.update_dtype(a.dtype)) for p, a in parameters.items()}

    def current(self, parameter: Array, state: Named) -> Array:
        """Return the array that the optimizer updates: a master, or the parameter."""
        if not self.applies_to(parameter):
            return parameter
        widened, master = parameter.astype(self.dtype), state.get(KEY)
        if master is None:
            return widened
        return mx.where(master.astype(parameter.dtype) == parameter, master, widened)
