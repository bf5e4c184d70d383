"""`DistributedOptimizer`, and what it is composed of."""

from .averaging import average_gradients
from .finite import NonFiniteError
from .optimizer import DistributedOptimizer

__all__ = ["DistributedOptimizer", "NonFiniteError", "average_gradients"]
