"""Methods of MLX's `Optimizer` that a wrapped class replaces: honoured, or refused.

`apply_single`, `init_single` and properties are honoured everywhere: a step calls them.
`init` and `apply_gradients` are honoured where each rank has all parameters. `update`
of MLX calls `apply_gradients`, and here nothing calls it.
"""

from __future__ import annotations

from collections.abc import Iterable

import mlx.optimizers as optim

from .hyperparameters import Optimizer

_PER_TENSOR = ("apply_single", "init_single")
_WHOLE_TREE = ("apply_gradients", "init")
_OF_MULTI = ("apply_gradients", "init", "update", "_split_dictionary")


def replaces(optimizer: Optimizer, name: str, base: type = optim.Optimizer) -> bool:
    """Return whether a class, or this one object, has a method of its own."""
    is_own = getattr(type(optimizer), name) is not getattr(base, name)
    return is_own or name in vars(optimizer)


def is_changed_object(optimizer: Optimizer) -> bool:
    """Return whether methods were assigned to this one object."""
    return any(name in vars(optimizer) for name in (*_PER_TENSOR, *_WHOLE_TREE))


def update_problem(optimizer: Optimizer) -> str | None:
    """Return why `update(model, gradients)` can't be honoured, or None."""
    if not replaces(optimizer, "update"):
        return None
    return (
        f"{_name(optimizer)} has an update() of its own, which mlxdist does not call: "
        "it averages gradients over the ranks and updates parameters in parts. Move "
        "what it does to apply_single() or apply_gradients(), or into the training "
        "loop; or average first: `gradients = mlxdist.average_gradients(gradients)`, "
        "then call its update() without a DistributedOptimizer"
    )


def multi_problem(optimizer: Optimizer) -> str | None:
    """Return why a subclass of MultiOptimizer can't be honoured, or None."""
    base = optim.MultiOptimizer
    names = [name for name in _OF_MULTI if replaces(optimizer, name, base)]
    if not names:
        return None
    return (
        f"{_name(optimizer)} is a MultiOptimizer with {_calls(names)} of its own, "
        "which mlxdist does not call: it updates each parameter with the optimizer "
        "that the filters select. Use a plain optim.MultiOptimizer"
    )


def sharding_problem(optimizers: Iterable[Optimizer]) -> str | None:
    """Return why state can't be sharded for methods that see whole trees, or None.

    A class that declares `elementwise = True` may be cut in any way.
    """
    for optimizer in optimizers:
        names = [name for name in _WHOLE_TREE if replaces(optimizer, name)]
        if names and not vars(type(optimizer)).get("elementwise", False):
            return (
                f"{_name(optimizer)} has {_calls(names)} of its own, which would see "
                "this rank's parameters alone: use shard=False. Or override "
                "apply_single() and init_single() instead; or, if it updates each "
                "element by itself, declare it with a class attribute: elementwise = "
                "True"
            )
    return None


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _calls(names: Iterable[str]) -> str:
    return " and ".join(f"{name}()" for name in names)
