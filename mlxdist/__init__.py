"""A distributed data-parallel optimizer for MLX.

Importing it starts nothing: `init()` joins the world that the launcher started.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import runtime as _runtime  # noqa: F401  tells mpi4py to start nothing

if TYPE_CHECKING:
    from .agreement import MismatchError
    from .averaging import average_gradients
    from .checkpoint import load_checkpoint, save_checkpoint
    from .data import ShardedSampler
    from .finite import NonFiniteError
    from .optimizer import DistributedOptimizer
    from .startup import init
    from .together import CheckpointError
    from .world import World

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DistributedOptimizer",
    "MismatchError",
    "NonFiniteError",
    "ShardedSampler",
    "World",
    "average_gradients",
    "init",
    "load_checkpoint",
    "save_checkpoint",
]

# Imported when first used, since MLX takes a quarter of a second, which the command
# that starts the ranks has no need to wait for.
_HOMES = {
    "DistributedOptimizer": "optimizer",
    "MismatchError": "agreement",
    "NonFiniteError": "finite",
    "ShardedSampler": "data",
    "World": "world",
    "average_gradients": "averaging",
    "init": "startup",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "CheckpointError": "together",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
