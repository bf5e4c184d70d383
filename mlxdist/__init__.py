"""A distributed data-parallel optimizer for MLX.

Importing it starts nothing: `init()` joins the world that the launcher started.
"""

from .agreement import MismatchError
from .averaging import average_gradients
from .data import ShardedSampler
from .finite import NonFiniteError
from .optimizer import DistributedOptimizer
from .startup import init
from .world import World

__version__ = "0.1.0"

__all__ = [
    "DistributedOptimizer",
    "MismatchError",
    "NonFiniteError",
    "ShardedSampler",
    "World",
    "average_gradients",
    "init",
]
