"""Copies of the parameters in the optimizer's state: master weights and EMA weights.

Both stand in each parameter's own state, under the keys "master" and "average", and so
are cut, gathered, saved, loaded on another number of ranks and captured by `mx.compile`
together with it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..arrays.types import Array, Dtype, Named
from ..layout.paths import KeyPath
from . import ema, masters
from .ema import EmaWeights
from .hyperparameters import Optimizer
from .masters import MasterWeights


class WeightCopies(NamedTuple):
    """Which copies are kept, and what a step does to them."""

    masters: MasterWeights = MasterWeights()
    ema: EmaWeights = EmaWeights()

    @property
    def none(self) -> bool:
        return self.masters.dtype is None and self.ema.decay is None

    def add(self, path: KeyPath, parameter: Array, state: Named) -> None:
        """Add the copies to the optimizer's own state of a parameter or a slice.

        Raises:
            ValueError: where the optimizer has a state of that name itself.
        """
        copies = {}
        if self.masters.applies_to(parameter):
            copies[masters.KEY] = parameter.astype(self.masters.dtype)
        if self.ema.decay is not None:
            copies[ema.KEY] = self.ema.initial(parameter)
        clash = sorted(copies.keys() & state.keys())
        if clash:
            raise ValueError(
                f"the optimizer has a state called {clash[0]!r} for {path} itself; "
                "rename it: mlxdist keeps something else under that name there"
            )
        state.update(copies)

    def apply(
        self,
        leaf: Optimizer,
        gradient: Array,
        parameter: Array,
        state: Named,
    ) -> Array:
        """Take one optimizer's step on a parameter, and return the new parameter."""
        if self.none:
            return leaf.apply_single(gradient, parameter, state)
        current = self.masters.current(parameter, state)
        return self.settle(
            leaf.apply_single(gradient, current, state), parameter, state
        )

    def settle(self, stepped: Array, parameter: Array, state: Named) -> Array:
        """Update the copies after a step, and return the new parameter."""
        if self.masters.applies_to(parameter):
            state[masters.KEY] = stepped
        if self.ema.decay is not None:
            state[ema.KEY] = self.ema.updated(stepped, parameter, state)
        return stepped.astype(parameter.dtype)

    def update_dtype(self, dtype: Dtype) -> Dtype:
        """Return the dtype in which a parameter of `dtype` is updated."""
        return self.masters.update_dtype(dtype)

    def settings(self) -> list[str]:
        """The options as text, to be compared across ranks."""
        return [
            f"master_dtype = {self.masters.dtype}",
            f"ema_decay = {self.ema.decay}",
        ]
