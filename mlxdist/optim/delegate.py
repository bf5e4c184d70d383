"""What a wrapper hands on to the optimizer that it wraps."""

from __future__ import annotations

from typing import Any

import mlx.optimizers as optim

from ..arrays.types import Array
from .inner import leaves


class Delegate(optim.Optimizer):
    """An MLX optimizer whose state, step and learning rate are another one's.

    MLX's own `__init__` is not called: it would make a second state.
    """

    def __init__(self, inner: Any):
        self._inner = inner

    @property
    def state(self) -> Any:
        """The wrapped optimizer's state on this rank: the shard's, where it is cut.

        'step', 'learning_rate', and a tree like the parameters that leaves out what
        other ranks own. For all of it: `gather_state`.
        """
        return self._inner.state

    @state.setter
    def state(self, value: Any) -> None:
        self._inner.state = value

    @property
    def step(self) -> Array:
        return leaves(self._inner)[0].state["step"]

    @property
    def learning_rate(self) -> Array:
        return self._inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._inner.learning_rate = value
