"""An MLX optimizer around another one, which attributes and hyperparameters reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import mlx.optimizers as optim

from ..arrays.types import Array
from ..world.world import World
from .hyperparameters import Optimizer
from .inner_optimizer import InnerOptimizer
from .options import Options, refuse_assignment

# Methods that a step calls on the wrapped optimizer alone.
_OF_THE_WRAPPED = ("apply_single", "init_single")


class OptimizerWrapper(optim.Optimizer):
    """Reads and sets on the wrapped optimizer what this object doesn't have itself.

    So `optimizer.weight_decay = 0.1` does what it does in MLX. Options of this object
    can be read, and not changed. A subclass sets `_inner` last.
    """

    world: World
    options: Options
    _inner: InnerOptimizer

    # MLX's __init__ is not called: its state and schedules are those of `_inner`.

    def __getattr__(self, name: str) -> object:
        """Look up what normal lookup doesn't find."""
        attributes = vars(self)
        if name.startswith("__") or "_inner" not in attributes:
            raise AttributeError(name)
        if name in Options.__dataclass_fields__:
            return getattr(self.options, name)
        try:
            return getattr(self.optimizer, name)
        except AttributeError:
            raise AttributeError(
                f"a {type(self).__name__} has no attribute {name!r}, and neither has "
                f"the {type(self.optimizer).__name__} that it wraps"
            ) from None

    def __setattr__(self, name: str, value: object) -> None:
        attributes = vars(self)
        of_wrapped = "_inner" in attributes and hasattr(self.optimizer, name)
        refuse_assignment(name, attributes, is_of_wrapped=of_wrapped)
        if self._is_of_the_wrapped(name):
            setattr(self.optimizer, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_of_the_wrapped(name):
            delattr(self.optimizer, name)
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.optimizer)})

    def __repr__(self) -> str:
        world = self.world
        return (
            f"<{type(self).__name__} of {type(self.optimizer).__name__}, "
            f"{self.options.strategy}, rank {world.rank} of {world.size}>"
        )

    def __copy__(self) -> OptimizerWrapper:
        twin = object.__new__(type(self))
        twin.__dict__.update(vars(self))
        return twin

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} can't be copied or pickled: it belongs to the "
            "ranks of this job. Keep its state instead: on disk with "
            "mlxdist.save_checkpoint(), in memory with optimizer.gather_state() and "
            "optimizer.load_state()"
        )

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped optimizer."""
        return self._inner.optimizer

    @property
    def step(self) -> Array:
        """Steps taken: a uint64 scalar."""
        return self._inner.leaves[0].optimizer.step

    @property
    def learning_rate(self) -> Array:
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | Array) -> None:
        self.optimizer.learning_rate = value

    # Properties, so that a function which replaces one may call what was there before.

    @property
    def init_single(self) -> Callable[[Array, dict[str, Array]], None]:
        """That of the wrapped optimizer."""
        method: Callable[[Array, dict[str, Array]], None] = self.optimizer.init_single
        return method

    @property
    def apply_single(self) -> Callable[[Array, Array, dict[str, Array]], Array]:
        """That of the wrapped optimizer; no gradients are averaged."""
        method: Callable[..., Array] = self.optimizer.apply_single
        return method

    def _is_of_the_wrapped(self, name: str) -> bool:
        attributes = vars(self)
        if name in attributes or "_inner" not in attributes:
            return False
        if name in _OF_THE_WRAPPED:
            return True
        return not hasattr(type(self), name) and hasattr(self.optimizer, name)
