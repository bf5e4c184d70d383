"""`DistributedOptimizer`, and the parts that it is composed of.

A step is `step.py`; how each of its phases works is `pipeline.py`. State of another
kind that goes with the parameters belongs into `weight_copies.py`, what MLX optimizers
may be sharded into `inner.py`.
"""

from .grad_norm import NonFiniteError
from .gradient_averaging import average_gradients
from .optimizer import DistributedOptimizer
from .options import Options
from .resumable_state import ResumableState

__all__ = [
    "DistributedOptimizer",
    "NonFiniteError",
    "Options",
    "ResumableState",
    "average_gradients",
]
