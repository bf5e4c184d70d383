"""This process as a rank: joining the world, guarding it, and telling how it ended."""

from .join import current, init
from .world import World

__all__ = ["World", "current", "init"]
