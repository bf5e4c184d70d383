"""What was wrapped: whether mlxdist can step it, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import mlx.optimizers as optim

from ..arrays.types import Array
from . import overrides
from .hyperparameters import Optimizer

Filter = Callable[[str, Array], bool]
_Multi = tuple[Optimizer, list[Optimizer], list[Filter]]

# The id of the last `Wrapping` of each MLX optimizer that holds state.
_last_wrapping: WeakKeyDictionary[Optimizer, object] = WeakKeyDictionary()


class Wrapping:
    """The optimizer that a `DistributedOptimizer` wraps, as it was then.

    Args:
        leaves: the MLX optimizers in it that hold state.

    Raises:
        ValueError: where one of them is a DistributedOptimizer.
    """

    def __init__(self, optimizer: Optimizer, leaves: Sequence[Optimizer]):
        if any(hasattr(leaf, "resumable_state") for leaf in leaves):
            raise ValueError("the optimizer is a DistributedOptimizer already")
        self._optimizer, self._leaves = optimizer, leaves
        self._multis = _multis(optimizer)
        self._id = object()
        _last_wrapping.update((leaf, self._id) for leaf in leaves)

    def init_problem(self, *, sharded: bool, model: bool) -> str | None:
        """Return why it can't be stepped: it changed, or has methods of its own.

        Args:
            model: whether `update` is called, and not `apply_gradients`.
        """
        problems = [self.problem()]
        problems += [overrides.multi_problem(multi) for multi, _, _ in self._multis]
        if model and not self._multis:
            problems.append(overrides.update_problem(self._optimizer))
        if sharded:
            problems.append(overrides.sharding_problem(self._leaves))
        return next(filter(None, problems), None)

    def refuse_update(self) -> None:
        """Raise ValueError where the class has an `update` of its own."""
        problem = None if self._multis else overrides.update_problem(self._optimizer)
        if problem is not None:
            raise ValueError(problem)

    def problem(self) -> str | None:
        """Return that it was wrapped again, or has other parts since; or None."""
        if any(_last_wrapping.get(leaf) is not self._id for leaf in self._leaves):
            return (
                f"the {type(self._optimizer).__name__} was wrapped again, by another "
                "DistributedOptimizer: use that one, or wrap two optimizers"
            )
        if self._multis and self._multis != _multis(self._optimizer):
            return (
                "the MultiOptimizer has other optimizers or filters than when it was "
                "wrapped: wrap it again"
            )
        return None


def _multis(optimizer: Optimizer) -> list[_Multi]:
    """All MultiOptimizers, with the optimizers and filters that each has."""
    if not isinstance(optimizer, optim.MultiOptimizer):
        return []
    multis = [(optimizer, list(optimizer.optimizers), list(optimizer.filters))]
    for part in optimizer.optimizers:
        multis += _multis(part)
    return multis
