"""A distributed data-parallel optimizer for MLX.

Importing it starts nothing: `init()` joins the world that the launcher started.
"""

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
