"""Copies of the parameters in the optimizer's state: master weights and EMA weights.

Both stand in each parameter's own state, under the keys "master" or "correction", and
"average", and so are cut, gathered, saved, loaded on another number of ranks and
captured by `mx.compile` together with it.
"""

from __future__ import annotations

from typing import NamedTuple

from ..arrays.types import Array, Dtype, Named
from ..layout.paths import KeyPath
from . import ema
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
            copies[self.masters.key] = self.masters.initial(parameter)
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
        stepped = leaf.apply_single(gradient, current, state)
        return self.settle(leaf, stepped, parameter, state)

    def settle(
        self, leaf: Optimizer, stepped: Array, parameter: Array, state: Named
    ) -> Array:
        """Update the copies after a leaf's step, and return the new parameter."""
        if self.ema.decay is not None:
            state[ema.KEY] = self.ema.updated(stepped, parameter, state)
        return self.masters.settle(stepped, parameter, state, leaf.state["step"])

    def update_dtype(self, dtype: Dtype) -> Dtype:
        """Return the dtype in which a parameter of `dtype` is updated."""
        return self.masters.update_dtype(dtype)

    def settings(self) -> list[str]:
        """The options as text, to be compared across ranks."""
        return [
            f"master_dtype = {self.masters.option}",
            f"ema_decay = {self.ema.decay}",
        ]
