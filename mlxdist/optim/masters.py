"""What is kept beside an optimizer's own state of a parameter: master and average.

Both stand in that parameter's state, under the names "master" and "average", and so go
wherever it goes: they are cut, gathered, saved, loaded on another number of ranks and
captured by `mx.compile` with it.

A master weight is the parameter in float32 (Micikevicius et al., "Mixed Precision
Training", ICLR 2018): the optimizer works on it, and the parameter is what it rounds
to. Where a parameter is not that, somebody else has changed it, and counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from ..arrays.types import Array, Flat

MASTER, AVERAGE = "master", "average"


class Beside(NamedTuple):
    """What to keep.

    Attributes:
        master_dtype: of masters, for parameters of less bytes; None for none.
        decay: of the average, which is decay * average + (1 - decay) * parameter after
            each step, in float32; None for none.
    """

    master_dtype: Any = None
    decay: float | None = None

    @property
    def is_nothing(self) -> bool:
        return self.master_dtype is None and self.decay is None

    def wide(self, dtype: Any) -> Any:
        """In what a parameter of a dtype is updated."""
        if self.master_dtype is not None and dtype.size < self.master_dtype.size:
            return self.master_dtype
        return dtype

    def widened(self, parameters: Flat) -> Flat:
        """As the optimizer sees them when it makes its state."""
        if self.master_dtype is None:
            return parameters
        return {p: a.astype(self.wide(a.dtype)) for p, a in parameters.items()}

    def add(self, path: str, parameter: Array, state: dict[str, Any]) -> None:
        """Adds it to the optimizer's own state of a parameter, or of a slice of one.

        Raises:
            ValueError: where the optimizer has a state of that name itself.
        """
        fresh = {}
        if self.wide(parameter.dtype) != parameter.dtype:
            fresh[MASTER] = parameter.astype(self.master_dtype)
        if self.decay is not None:
            fresh[AVERAGE] = parameter.astype(_average_dtype(parameter))
        clash = sorted(fresh.keys() & state.keys())
        if clash:
            raise ValueError(
                f"the optimizer has a state called {clash[0]!r} for {path} itself; "
                "rename it: mlxdist keeps something else under that name there"
            )
        state.update(fresh)

    def fitted(
        self, given: dict[str, dict[str, Array]], fresh: dict[str, dict[str, Array]]
    ) -> dict[str, dict[str, Array]]:
        """A state from elsewhere, with what it lacks of this, in its dtypes."""
        if self.is_nothing:
            return given
        result = {}
        for path, arrays in given.items():
            own = fresh.get(path, {})
            kept = {k: own[k] for k in (MASTER, AVERAGE) if k in own}
            result[path] = kept | {
                key: array.astype(own[key].dtype) if key in own else array
                for key, array in arrays.items()
            }
        return result

    def apply(
        self, leaf: Any, gradient: Array, own: Array, state: dict[str, Any]
    ) -> Array:
        """One optimizer's step on a parameter with its state."""
        if self.is_nothing:
            return leaf.apply_single(gradient, own, state)
        stepped = leaf.apply_single(gradient, self.master(own, state), state)
        return self.settle(stepped, own, state)

    def master(self, own: Array, state: dict[str, Any]) -> Array:
        """What the optimizer updates in a parameter's place."""
        wide = self.wide(own.dtype)
        if wide == own.dtype:
            return own
        taken, master = own.astype(wide), state.get(MASTER)
        if master is None:
            return taken
        return mx.where(master.astype(own.dtype) == own, master, taken)

    def settle(self, stepped: Array, own: Array, state: dict[str, Any]) -> Array:
        """Keeps what there is to keep of a step, and gives the parameter."""
        if self.wide(own.dtype) != own.dtype:
            state[MASTER] = stepped
        if self.decay is not None:
            wide = stepped.astype(_average_dtype(own))
            average = state.get(AVERAGE, wide)
            state[AVERAGE] = average + (1 - self.decay) * (wide - average)
        return stepped.astype(own.dtype)


def _average_dtype(parameter: Array) -> Any:
    return mx.float64 if parameter.dtype == mx.float64 else mx.float32
