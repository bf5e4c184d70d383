"""A distributed data-parallel optimizer for MLX.

Importing it starts nothing: `init()` joins the world that the launcher started.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import mpi4py

from .version import __version__

# Whoever imports mpi4py.MPI first must not start MPI: MLX would find it started and
# report a world of one on every rank.
mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

if TYPE_CHECKING:
    from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
    from .comm import MismatchError
    from .data import ShardedSampler
    from .optim import DistributedOptimizer, NonFiniteError, average_gradients
    from .world import World, init

__all__ = [
    "CheckpointError",
    "DistributedOptimizer",
    "MismatchError",
    "NonFiniteError",
    "ShardedSampler",
    "World",
    "__version__",
    "average_gradients",
    "init",
    "load_checkpoint",
    "save_checkpoint",
]

# Imported when first used: MLX takes a quarter of a second to import, and the command
# that starts the ranks doesn't need it.
_HOMES = {
    "CheckpointError": "checkpoint",
    "DistributedOptimizer": "optim",
    "MismatchError": "comm",
    "NonFiniteError": "optim",
    "ShardedSampler": "data",
    "World": "world",
    "average_gradients": "optim",
    "init": "world",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
